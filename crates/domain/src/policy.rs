//! Who may do what in a room: one decision function, and nothing else decides.

use crate::{
    Error, Result,
    room::{Role, RoomKind},
};

/// Something that a person wants to do in a room.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Action {
    /// See the room, its members and messages.
    Read,
    /// Become a member by oneself.
    Join,
    /// Stop being a member.
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
    /// Add a person as a plain member.
    AddMember,
    /// Give a role to a person who has `from` (if a member at all).
    SetRole {
        /// The role they have.
        from: Option<Role>,
        /// The role they get.
        to: Role,
    },
    /// Remove a member who has this role.
    RemoveMember {
        /// The role they have.
        role: Role,
    },
    /// Delete the room.
    DeleteRoom,
}

/// Decides. `role` is the actor's role in the room, `None` if no member.
pub fn allows(kind: RoomKind, role: Option<Role>, action: Action) -> bool {
    use Action::{
        AddMember, DeleteMessage, DeleteRoom, EditMessage, Join, Leave, Read, RemoveMember, Send,
        SetRole,
    };
    use RoomKind::{Channel, Direct, Group};
    let at_least = |least: Role| role.is_some_and(|role| role >= least);
    match action {
        Read => role.is_some() || kind.is_listed(),
        Join => kind.is_listed(),
        Leave => role.is_some() && kind != Direct,
        Send => match kind {
            Channel => at_least(Role::Moderator),
            _ => role.is_some(),
        },
        EditMessage { own } => own && role.is_some(),
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
        RemoveMember { role: theirs } => {
            kind != Direct && at_least(Role::Moderator) && role > Some(theirs)
        }
        DeleteRoom => kind != Direct && at_least(Role::Owner),
    }
}

/// [`allows`] as a result. A room that the actor may not read is "not found", so that its existence isn't told.
pub fn require(kind: RoomKind, role: Option<Role>, action: Action) -> Result<()> {
    if allows(kind, role, action) {
        Ok(())
    } else if allows(kind, role, Action::Read) {
        Err(Error::denied("your role in this room does not allow this"))
    } else {
        Err(Error::not_found("room"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// MSG-01, MSG-08: the whole matrix, so that a change of a rule shows as a change of this table.
    #[test]
    fn golden_matrix() {
        let actions = [
            ("read", Action::Read),
            ("join", Action::Join),
            ("leave", Action::Leave),
            ("send", Action::Send),
            ("edit own", Action::EditMessage { own: true }),
            ("edit other's", Action::EditMessage { own: false }),
            ("delete own", Action::DeleteMessage { own: true }),
            ("delete other's", Action::DeleteMessage { own: false }),
            ("add member", Action::AddMember),
            (
                "make admin of member",
                Action::SetRole {
                    from: Some(Role::Member),
                    to: Role::Admin,
                },
            ),
            ("remove member", Action::RemoveMember { role: Role::Member }),
            ("remove admin", Action::RemoveMember { role: Role::Admin }),
            ("delete room", Action::DeleteRoom),
        ];
        let mut table = String::new();
        for kind in RoomKind::ALL {
            table.push_str(&format!(
                "{}: none member moderator admin owner\n",
                kind.as_str()
            ));
            for (name, action) in actions {
                let roles = std::iter::once(None).chain(Role::ALL.into_iter().map(Some));
                let cells: String = roles
                    .map(|role| if allows(kind, role, action) { '+' } else { '.' })
                    .collect();
                table.push_str(&format!("  {cells} {name}\n"));
            }
        }
        insta::assert_snapshot!("permission_matrix", table);
    }
}
