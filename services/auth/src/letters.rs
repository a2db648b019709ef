//! The texts of mails: short, plain, and without anything that a stranger may have chosen.

use url::Url;

use crate::mail::Mail;

/// Where a link leads: what comes after `#` stays in the reader's browser, and so out of logs.
fn link(public_url: &Url, what: &str, token: &str) -> Url {
    let mut link = public_url.clone();
    link.set_fragment(Some(&format!("{what}={token}")));
    link
}

/// To somebody whose address was given for an account, to confirm it.
pub(crate) fn confirm(to: String, name: &str, public_url: &Url, token: &str) -> Mail {
    let link = link(public_url, "verify", token);
    Mail {
        to,
        subject: "Confirm your e-mail address",
        text: format!(
            "Somebody, probably you, gave this address for an account at {name} ({public_url}).\n\n\
             To confirm it, open this link within 24 hours:\n\n{link}\n\n\
             If it wasn't you, do nothing: the address won't be used.\n"
        ),
    }
}

/// To somebody whose address was given for another account than theirs.
pub(crate) fn has_account(to: String, name: &str, public_url: &Url) -> Mail {
    Mail {
        to,
        subject: "You have an account already",
        text: format!(
            "Somebody, probably you, gave this address for an account at {name}.\n\n\
             It belongs to your account there already. Log in with it, or ask for a new password:\n\n{public_url}\n\n\
             If it wasn't you, do nothing: nothing was changed.\n"
        ),
    }
}

/// To the owner of an account, who forgot the password.
pub(crate) fn reset(to: String, name: &str, public_url: &Url, token: &str) -> Mail {
    let link = link(public_url, "reset", token);
    Mail {
        to,
        subject: "Set a new password",
        text: format!(
            "Somebody, probably you, asked for a new password for your account at {name}.\n\n\
             To set one, open this link within 30 minutes:\n\n{link}\n\n\
             All your devices will be logged out. If it wasn't you, do nothing: your password stays.\n"
        ),
    }
}

/// To the address that an account had before.
pub(crate) fn moved(to: String, name: &str, public_url: &Url) -> Mail {
    Mail {
        to,
        subject: "Your e-mail address was changed",
        text: format!(
            "Your account at {name} ({public_url}) has another e-mail address now, and no longer this one.\n\n\
             If it wasn't you, tell whoever runs {name}.\n"
        ),
    }
}
