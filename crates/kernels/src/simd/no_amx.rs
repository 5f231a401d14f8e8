//! Stand-in for `amx` on platforms without AMX.

use super::AmxSums;

/// Uninhabited: there is no AMX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AmxUnit {}

impl AmxUnit {
    #[cfg(target_arch = "x86_64")]
    pub(super) fn detect() -> Option<Self> {
        None
    }

    pub(crate) fn configure(self, _group: usize) -> AmxSession {
        match self {}
    }
}

/// Uninhabited: there is no AMX.
pub(crate) enum AmxSession {}

impl AmxSession {
    pub(crate) fn multiply(&self, _codes: [&[[u8; 64]]; 2], _x: &[[i8; 64]], _sums: &mut AmxSums) {
        match *self {}
    }
}
