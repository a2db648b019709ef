//! Who may do what in a room: one decision function, and nothing else decides.

use crate::{
    Error, Result, Timestamp,
    room::{Restrictions, Role, RoomKind, Standing},
};

/// Who wants something, as a room sees them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Who {
    /// Their role, `None` if no member.
    pub role: Option<Role>,
    /// They were asked to join.
    pub invited: bool,
    /// They were removed and may not come back.
    pub banned: bool,
    /// They may read but not write.
    pub muted: bool,
    /// One of the two people of a direct room blocked the other (USER-05).
    pub blocked: bool,
}

impl Who {
    /// What the log of a room says about a person, at a time.
    pub fn of(standing: &Standing, now: Timestamp) -> Self {
        let Restrictions {
            banned, invited, ..
        } = standing.restrictions;
        Self {
            role: standing.member.map(|member| member.role),
            invited,
            banned,
            muted: standing.restrictions.is_muted(now),
            blocked: false,
        }
    }
}

/// Something that a person wants to do in a room.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Action {
    /// See the room, its members and messages.
    Read,
    /// Become a member by oneself.
    Join,
    /// Stop being a member, or decline an invitation.
    Leave,
    /// Send a message, typing included.
    Send,
    /// Edit a message; `own` says whether it is one's own.
    EditMessage {
        /// The message is the actor's own.
        own: bool,
    },
    /// Delete a message.
    DeleteMessage {
        /// The message is the actor's own.
        own: bool,
    },
    /// Add a person as a plain member, or ask them to join.
    AddMember,
    /// Give a role to a person who has `from` (if a member at all).
    SetRole {
        /// The role they have.
        from: Option<Role>,
        /// The role they get.
        to: Role,
    },
    /// Remove a member who has this role; `None`: withdraw an invitation.
    RemoveMember {
        /// The role they have.
        role: Option<Role>,
    },
    /// Ban or mute a person who has this role, if a member at all, or end that.
    Restrict {
        /// The role they have.
        role: Option<Role>,
    },
    /// See who is banned or muted.
    ReadRestrictions,
    /// Give the room other rules, or another name and description.
    Change,
    /// Delete the room.
    DeleteRoom,
}

/// Decides.
pub fn allows(kind: RoomKind, who: Who, action: Action) -> bool {
    use Action::{
        AddMember, Change, DeleteMessage, DeleteRoom, EditMessage, Join, Leave, Read,
        ReadRestrictions, RemoveMember, Restrict, Send, SetRole,
    };
    use RoomKind::{Channel, Direct, Group};
    if who.banned {
        return false;
    }
    let role = who.role;
    let at_least = |least: Role| role.is_some_and(|role| role >= least);
    let invited = who.invited && kind != Direct;
    let blocked = who.blocked && kind == Direct;
    let may_write = !who.muted && !blocked;
    match action {
        Read => role.is_some() || kind.is_listed() || invited,
        Join => kind.is_listed() || invited,
        Leave => (role.is_some() || invited) && kind != Direct,
        Send => {
            may_write
                && match kind {
                    Channel => at_least(Role::Moderator),
                    _ => role.is_some(),
                }
        }
        EditMessage { own } => own && may_write && role.is_some(),
        DeleteMessage { own } => {
            (own && role.is_some()) || (kind != Direct && at_least(Role::Moderator))
        }
        AddMember => match kind {
            Direct => false,
            Group => role.is_some(),
            _ => at_least(Role::Admin),
        },
        SetRole { from, to } => {
            kind != Direct
                && at_least(Role::Admin)
                && role >= Some(to)
                && from.is_none_or(|from| role > Some(from))
        }
        // Nobody is below who isn't a member.
        RemoveMember { role: theirs } | Restrict { role: theirs } => {
            kind != Direct && at_least(Role::Moderator) && role > theirs
        }
        ReadRestrictions => kind != Direct && at_least(Role::Moderator),
        Change => match kind {
            Direct => role.is_some() && !blocked,
            _ => at_least(Role::Admin),
        },
        DeleteRoom => kind != Direct && at_least(Role::Owner),
    }
}

/// [`allows`] as a result. A room that the actor may not read is "not found", so that its existence isn't told.
pub fn require(kind: RoomKind, who: Who, action: Action) -> Result<()> {
    if allows(kind, who, action) {
        return Ok(());
    }
    if who.banned {
        // Listed rooms are no secret.
        return Err(if kind.is_listed() {
            Error::denied("you are banned from this room")
        } else {
            Error::not_found("room")
        });
    }
    if !allows(kind, who, Action::Read) {
        return Err(Error::not_found("room"));
    }
    let unbound = Who {
        muted: false,
        blocked: false,
        ..who
    };
    Err(Error::denied(match who {
        // Who blocked whom is nobody's business.
        Who { blocked: true, .. } if allows(kind, unbound, action) => {
            "you and this person can't write to each other"
        }
        Who { muted: true, .. } if allows(kind, unbound, action) => "you are muted in this room",
        _ => "your role in this room does not allow this",
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACTIONS: [(&str, Action); 20] = [
        ("read", Action::Read),
        ("join", Action::Join),
        ("leave", Action::Leave),
        ("send", Action::Send),
        ("edit own", Action::EditMessage { own: true }),
        ("edit other's", Action::EditMessage { own: false }),
        ("delete own", Action::DeleteMessage { own: true }),
        ("delete other's", Action::DeleteMessage { own: false }),
        ("add or invite", Action::AddMember),
        (
            "make member moderator",
            Action::SetRole {
                from: Some(Role::Member),
                to: Role::Moderator,
            },
        ),
        (
            "make member admin",
            Action::SetRole {
                from: Some(Role::Member),
                to: Role::Admin,
            },
        ),
        (
            "make admin member",
            Action::SetRole {
                from: Some(Role::Admin),
                to: Role::Member,
            },
        ),
        (
            "make stranger owner",
            Action::SetRole {
                from: None,
                to: Role::Owner,
            },
        ),
        (
            "remove member",
            Action::RemoveMember {
                role: Some(Role::Member),
            },
        ),
        (
            "remove admin",
            Action::RemoveMember {
                role: Some(Role::Admin),
            },
        ),
        ("ban or mute stranger", Action::Restrict { role: None }),
        (
            "ban or mute moderator",
            Action::Restrict {
                role: Some(Role::Moderator),
            },
        ),
        ("see restrictions", Action::ReadRestrictions),
        ("change room", Action::Change),
        ("delete room", Action::DeleteRoom),
    ];

    fn roles() -> impl Iterator<Item = Option<Role>> {
        std::iter::once(None).chain(Role::ALL.into_iter().map(Some))
    }

    fn rows(kind: RoomKind, who: impl Fn(Option<Role>) -> Who) -> String {
        let row = |(name, action)| {
            let cell = |role| {
                if allows(kind, who(role), action) {
                    '+'
                } else {
                    '.'
                }
            };
            format!("  {} {name}\n", roles().map(cell).collect::<String>())
        };
        ACTIONS.into_iter().map(row).collect()
    }

    /// MSG-01, MSG-03, MSG-08, USER-05: the whole matrix, so that a change of a rule shows as a change of this table. A row of it
    /// is an action; its columns are who isn't a member, members, moderators, admins and owners.
    #[test]
    fn golden_matrix() {
        type Bind = fn(Who) -> Who;
        let bound: [(&str, Bind); 5] = [
            ("", |who| who),
            (", invited", |who| Who {
                invited: true,
                ..who
            }),
            (", muted", |who| Who { muted: true, ..who }),
            (", blocked", |who| Who {
                blocked: true,
                ..who
            }),
            (", banned", |who| Who {
                banned: true,
                ..who
            }),
        ];
        let mut table = String::new();
        for kind in RoomKind::ALL {
            for (name, bind) in bound {
                table.push_str(&format!("{}{name}\n", kind.as_str()));
                table.push_str(&rows(kind, |role| {
                    bind(Who {
                        role,
                        ..Who::default()
                    })
                }));
            }
        }
        insta::assert_snapshot!("permission_matrix", table);
    }

    /// MSG-03: a refusal says what stands in the way, and nothing about a room that one may not know of.
    #[test]
    fn refusals_tell_what_the_actor_may_know() {
        let member = Who {
            role: Some(Role::Member),
            ..Who::default()
        };
        let said = |kind, who, action| match require(kind, who, action) {
            Ok(()) => "allowed".to_owned(),
            Err(error) => error.to_string(),
        };
        let muted = Who {
            muted: true,
            ..member
        };
        let blocked = Who {
            blocked: true,
            ..member
        };
        let banned = Who {
            banned: true,
            ..Who::default()
        };
        let answers = [
            said(RoomKind::Group, member, Action::Send),
            said(RoomKind::Group, muted, Action::Send),
            said(RoomKind::Channel, muted, Action::Send),
            said(RoomKind::Direct, blocked, Action::Send),
            said(RoomKind::Group, Who::default(), Action::Send),
            said(RoomKind::Public, banned, Action::Join),
            said(RoomKind::Group, banned, Action::Read),
        ];
        insta::assert_snapshot!(answers.join("\n"), @r"
        allowed
        permission_denied: you are muted in this room
        permission_denied: your role in this room does not allow this
        permission_denied: you and this person can't write to each other
        not_found: no such room
        permission_denied: you are banned from this room
        not_found: no such room
        ");
    }
}
