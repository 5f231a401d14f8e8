//! Where there is no matrix unit that the project can use.

use super::UnitSums;

/// Nobody has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MatrixUnit {}

impl MatrixUnit {
    #[cfg(target_arch = "x86_64")]
    pub(super) fn detect() -> Option<Self> {
        None
    }

    pub(crate) fn begin(self, _group: usize) -> Session {
        match self {}
    }
}

/// Nobody has one.
pub(crate) enum Session {}

impl Session {
    pub(crate) fn products(&self, _codes: [&[[u8; 64]]; 2], _x: &[[i8; 64]], _sums: &mut UnitSums) {
        match *self {}
    }
}
