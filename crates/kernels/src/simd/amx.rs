//! The matrix unit of Sapphire Rapids and later (AMX): products of byte matrices, sixteen rows by sixteen columns.
//!
//! Stable Rust has no intrinsics for it, so its instructions are written out here, and only here.

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::marker::PhantomData;

use super::{UNIT_TOKENS, UnitSums};

/// Proof that this processor has the unit and that the system lets this process use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MatrixUnit(());

impl MatrixUnit {
    pub(super) fn detect() -> Option<Self> {
        // CPUID leaf 7: AMX-TILE and AMX-INT8.
        let features = __cpuid_count(7, 0).edx;
        if features & 1 << 24 == 0 || features & 1 << 25 == 0 {
            return None;
        }
        const ARCH_REQ_XCOMP_PERM: libc::c_ulong = 0x1023;
        const XFEATURE_XTILEDATA: libc::c_ulong = 18;
        // SAFETY: asks the kernel to keep tiles across task switches of this process; no memory is involved.
        let granted = unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) };
        (granted == 0).then_some(Self(()))
    }

    /// Sets this thread's tiles up for groups of `group` columns: 32, 64 or 128.
    pub(crate) fn begin(self, group: usize) -> Session {
        let columns = group.min(64);
        let mut config =
            Config { palette: 1, start_row: 0, zeros: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        // Sums, then activations: a row for each token. Then codes: a row for each four columns.
        for (tile, (rows, row_bytes)) in [(UNIT_TOKENS, 64); 4]
            .into_iter()
            .chain([(UNIT_TOKENS, columns); 2])
            .chain([(columns / 4, 64); 2])
            .enumerate()
        {
            config.rows[tile] = rows as u8;
            config.row_bytes[tile] = row_bytes as u16;
        }
        // SAFETY: the unit is there; the configuration is 64 bytes in the form of palette 1, within its limits.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack, readonly)) };
        Session { group, columns, thread: PhantomData }
    }
}

#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    zeros: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// This thread's tiles, given back to the system when dropped.
pub(crate) struct Session {
    group: usize,
    columns: usize,
    thread: PhantomData<*mut ()>,
}

impl Session {
    /// Writes the sums over one group of products of unsigned codes with activations.
    ///
    /// `codes` are those of two tiles, [group / 4] vectors each of four codes of sixteen rows; `x` are the upper
    /// halves of sixteen tokens' activations [tokens, group], then the lower ones.
    #[inline(always)]
    pub(crate) fn products(&self, codes: [&[[u8; 64]]; 2], x: &[[i8; 64]], sums: &mut UnitSums) {
        let half = UNIT_TOKENS * self.group;
        assert!(codes[0].len() == self.group / 4 && codes[1].len() == self.group / 4);
        assert!(x.len() * 64 == 2 * half);
        let x = x.as_ptr().cast::<i8>();
        // SAFETY: `begin` has set the tiles up on this thread, which the session cannot leave. Loads of codes read
        // columns / 4 rows of 64 bytes, group / columns times: group / 4 vectors. Loads of activations read 16 rows of
        // `columns` bytes, `group` bytes apart, the k-th time from byte `columns` * k of each: a half. Stores write
        // 16 rows of 64 bytes, which are one of the four parts of `sums`.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "2:",
                "tileloadd tmm6, [{first} + {line}]",
                "tileloadd tmm4, [{upper} + {group}]",
                "tdpbsud tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{lower} + {group}]",
                "tdpbsud tmm1, tmm5, tmm6",
                "tileloadd tmm7, [{second} + {line}]",
                "tdpbsud tmm2, tmm4, tmm7",
                "tdpbsud tmm3, tmm5, tmm7",
                "add {upper}, {columns}",
                "add {lower}, {columns}",
                "add {first}, 1024",
                "add {second}, 1024",
                "dec {parts}",
                "jnz 2b",
                "tilestored [{sums} + {line}], tmm0",
                "tilestored [{sums} + {line} + 1024], tmm1",
                "tilestored [{sums} + {line} + 2048], tmm2",
                "tilestored [{sums} + {line} + 3072], tmm3",
                first = inout(reg) codes[0].as_ptr() => _,
                second = inout(reg) codes[1].as_ptr() => _,
                upper = inout(reg) x => _,
                lower = inout(reg) x.add(half) => _,
                parts = inout(reg) self.group / self.columns => _,
                columns = in(reg) self.columns,
                group = in(reg) self.group,
                line = in(reg) 64usize,
                sums = in(reg) &raw mut sums.0,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // SAFETY: a session exists, so the unit does; nothing of it is needed any more.
        unsafe { asm!("tilerelease", options(nomem, nostack)) };
    }
}
