//! File descriptors: one a connection, so the process asks for as many as it may have.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::sockets::{Budget, TooFew};

/// Raises the soft limit to the hard one and shares it out; says so if that is too little for `connections`.
///
/// # Errors
/// When the limit is too low to run at all.
pub(super) fn share_out(connections: usize, shards: usize) -> Result<Budget, TooFew> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let raised = Rlimit {
            current: limit.maximum,
            ..limit
        };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::debug!(%error, "the limit on file descriptors cannot be raised");
        }
    }
    // `None` means that there is no limit.
    let descriptors = getrlimit(Resource::Nofile).current;
    let budget = Budget::new(descriptors, connections, shards)?;
    if budget.connections < connections {
        tracing::warn!(
            descriptors,
            connections = budget.connections,
            configured = connections,
            "fewer file descriptors than limits.connections needs: only this many connections are taken; raise the hard limit (ulimit -n, LimitNOFILE) or lower limits.connections"
        );
    }
    Ok(budget)
}
