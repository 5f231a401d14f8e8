//! AMX, the matrix unit of Intel servers from Sapphire Rapids on: products of byte matrices, sixteen rows by sixteen columns.
//!
//! Stable Rust has no intrinsics for it, so this module uses inline assembly.

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::marker::PhantomData;

use super::{AMX_TOKENS, AmxSums};

/// Proof that the processor has AMX and that the system lets this process use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AmxUnit(());

impl AmxUnit {
    pub(super) fn detect() -> Option<Self> {
        // CPUID leaf 7: AMX-TILE and AMX-INT8.
        let features = __cpuid_count(7, 0).edx;
        if features & 1 << 24 == 0 || features & 1 << 25 == 0 {
            return None;
        }
        const ARCH_REQ_XCOMP_PERM: libc::c_ulong = 0x1023;
        const XFEATURE_XTILEDATA: libc::c_ulong = 18;
        // SAFETY: the call requests that the kernel saves tiles across task switches; no memory is involved.
        let granted = unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) };
        (granted == 0).then_some(Self(()))
    }

    /// Configures this thread's tiles for groups of `group` columns: 32, 64 or 128.
    pub(crate) fn configure(self, group: usize) -> AmxSession {
        let columns = group.min(64);
        let mut config =
            Config { palette: 1, start_row: 0, zeros: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        // Four tiles of sums and two of activations with a row per token, then two of codes with a row per four columns.
        for (tile, (rows, row_bytes)) in [(AMX_TOKENS, 64); 4]
            .into_iter()
            .chain([(AMX_TOKENS, columns); 2])
            .chain([(columns / 4, 64); 2])
            .enumerate()
        {
            config.rows[tile] = rows as u8;
            config.row_bytes[tile] = row_bytes as u16;
        }
        // SAFETY: AMX was detected; the configuration is 64 bytes in the format of palette 1, within its limits.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack, readonly)) };
        AmxSession { group, columns, thread: PhantomData }
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

/// This thread's configured tiles, released on drop.
pub(crate) struct AmxSession {
    group: usize,
    columns: usize,
    thread: PhantomData<*mut ()>,
}

impl AmxSession {
    /// Computes the products of one group of two tiles with sixteen tokens.
    ///
    /// `codes` are unsigned, [group / 4] vectors of four codes of sixteen rows per tile; `x` are the upper halves of the
    /// activations [tokens, group], then the lower ones.
    #[inline(always)]
    pub(crate) fn multiply(&self, codes: [&[[u8; 64]]; 2], x: &[[i8; 64]], sums: &mut AmxSums) {
        let half = AMX_TOKENS * self.group;
        assert!(codes[0].len() == self.group / 4 && codes[1].len() == self.group / 4);
        assert!(x.len() * 64 == 2 * half);
        let x = x.as_ptr().cast::<i8>();
        // SAFETY: `configure` has configured the tiles of this thread, which the session cannot leave. Loads of codes read
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

impl Drop for AmxSession {
    fn drop(&mut self) {
        // SAFETY: the session exists, so AMX does; no tile is used after this.
        unsafe { asm!("tilerelease", options(nomem, nostack)) };
    }
}
