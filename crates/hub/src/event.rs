//! Events of a download.

/// Progress of a look-up. Events come on the calling thread, in order: `Started`, any number of `Progress`, then
/// `Finished`; a transfer that is resumed starts anew. No `Finished` follows a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A transfer begins.
    Started {
        /// File in the repository.
        file: &'a str,
        /// Its whole size, if declared.
        size_bytes: Option<u64>,
        /// Bytes of an earlier transfer.
        resumed_at_bytes: u64,
    },
    /// More bytes have arrived.
    Progress {
        /// File in the repository.
        file: &'a str,
        /// Bytes since the last event.
        bytes: u64,
    },
    /// A file is complete, verified and in place.
    Finished {
        /// File in the repository.
        file: &'a str,
    },
    /// The hub cannot be reached or refuses; the cached commit is used.
    Cached {
        /// The commit.
        commit: &'a str,
        /// HTTP status of the refusal; `None` if the hub cannot be reached.
        status: Option<u16>,
    },
}
