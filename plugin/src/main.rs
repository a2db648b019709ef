//! `kubectl carillon`: a picture of a ChatCluster, its logs, and what operations need: restart, pause, rotate, backup, a support
//! bundle.
//!
//! Everything goes through the user's own `kubectl`: its contexts, credentials and login plugins are right, and the plugin can do
//! nothing that its user can't. It knows no Kubernetes client, and decides nothing that the operator decides.

mod actions;
mod backup;
mod bundle;
mod kubectl;
mod redact;
mod status;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::kubectl::Kubectl;

#[derive(Parser)]
#[command(
    name = "kubectl carillon",
    bin_name = "kubectl carillon",
    version,
    about = "Looks after ChatClusters"
)]
struct Arguments {
    #[command(flatten)]
    place: Place,
    #[command(subcommand)]
    command: Task,
}

/// Where, as `kubectl` itself takes it.
#[derive(Args)]
struct Place {
    /// Namespace of the ChatCluster
    #[arg(long, short, global = true)]
    namespace: Option<String>,
    /// Context of the kubeconfig
    #[arg(long, global = true)]
    context: Option<String>,
    /// The kubeconfig
    #[arg(long, global = true)]
    kubeconfig: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Task {
    /// A picture of the ChatCluster: components, stores, conditions
    Status {
        /// Its name; may be left out if it is the only one in the namespace
        name: Option<String>,
        /// Print JSON instead
        #[arg(long, short)]
        output: Option<Output>,
    },
    /// Logs of all its pods, each line with its pod
    Logs {
        /// Its name; may be left out if it is the only one in the namespace
        name: Option<String>,
        /// Only this role
        #[arg(long, short, default_value = "all")]
        role: Role,
        /// Go on as lines come
        #[arg(long, short)]
        follow: bool,
        /// Lines of each pod's past
        #[arg(long, default_value_t = 100)]
        tail: u32,
    },
    /// Start a role's pods anew, one after the other
    Restart {
        /// A role, or all
        role: Role,
        /// The ChatCluster's name; may be left out if it is the only one in the namespace
        name: Option<String>,
    },
    /// Tell the operator to leave the ChatCluster as it is; what runs goes on running
    Pause {
        /// Its name; may be left out if it is the only one in the namespace
        name: Option<String>,
    },
    /// Let the operator look after the ChatCluster again
    Resume {
        /// Its name; may be left out if it is the only one in the namespace
        name: Option<String>,
    },
    /// Have a key replaced while everything goes on: nobody is logged out, no pod restarts
    Rotate {
        /// Which: jwt (signs tokens), certificates (of the roles), or ca (the authority, and all certificates with it)
        key: Key,
        /// The ChatCluster's name; may be left out if it is the only one in the namespace
        name: Option<String>,
    },
    /// Make a backup now, where the ChatBackups of the ChatCluster are kept
    Backup {
        /// The ChatCluster's name; may be left out if it is the only one in the namespace
        name: Option<String>,
        /// The ChatBackup whose place is used; may be left out if all are kept in one place
        #[arg(long)]
        like: Option<String>,
    },
    /// Write what helps to find a fault into a tar.gz: objects, events, logs; no Secret's data, no token
    SupportBundle {
        /// Its name; may be left out if it is the only one in the namespace
        name: Option<String>,
        /// The file [default: carillon-NAME-TIME.tar.gz]
        #[arg(long, short)]
        file: Option<PathBuf>,
        /// Lines of each container's log
        #[arg(long, default_value_t = 5000)]
        tail: u32,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    Json,
}

/// A role, or all of them.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Role {
    Gateway,
    Auth,
    Message,
    Presence,
    Media,
    Notification,
    All,
}

/// A key that the operator makes.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Key {
    Jwt,
    Certificates,
    Ca,
}

impl Role {
    /// The value of its pods' label; `None` for all.
    pub(crate) fn label(self) -> Option<&'static str> {
        match self {
            Role::Gateway => Some("gateway"),
            Role::Auth => Some("auth"),
            Role::Message => Some("message"),
            Role::Presence => Some("presence"),
            Role::Media => Some("media"),
            Role::Notification => Some("notification"),
            Role::All => None,
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kubectl carillon: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<()> {
    let place = arguments.place;
    let kubectl = Kubectl::new(place.namespace, place.context, place.kubeconfig);
    match arguments.command {
        Task::Status { name, output } => {
            let cluster = kubectl.chat_cluster(name.as_deref())?;
            match output {
                Some(Output::Json) => status::print_json(&cluster),
                None => status::print(&cluster),
            }
        }
        Task::Logs {
            name,
            role,
            follow,
            tail,
        } => actions::logs(&kubectl, name.as_deref(), role, follow, tail),
        Task::Restart { role, name } => actions::restart(&kubectl, name.as_deref(), role),
        Task::Pause { name } => actions::pause(&kubectl, name.as_deref(), true),
        Task::Resume { name } => actions::pause(&kubectl, name.as_deref(), false),
        Task::Rotate { key, name } => actions::rotate(&kubectl, name.as_deref(), key),
        Task::Backup { name, like } => backup::make(&kubectl, name.as_deref(), like.as_deref()),
        Task::SupportBundle { name, file, tail } => {
            bundle::write(&kubectl, name.as_deref(), file, tail)
        }
    }
}
