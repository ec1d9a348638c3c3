//! The tile registers of this processor.
//!
//! The compiler has no stable name for them, so each instruction is a line of assembly. It uses them nowhere itself, which is
//! why they keep what they hold from one line to the next.

use std::{
    arch::{
        asm,
        x86_64::{
            __cpuid, __cpuid_count, __m512bh, __m512i, _mm512_cvtne2ps_pbh, _mm512_loadu_ps, _mm512_setzero_ps,
            _mm512_storeu_si512, _xgetbv,
        },
    },
    cell::Cell,
    marker::PhantomData,
    sync::OnceLock,
};

use super::{LINES, Tiles};
use crate::line::{HalfLine, Line};

/// Whether this processor has tile registers and their products of bf16, and the operating system lets us use them.
pub(crate) fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| has_instructions() && is_permitted())
}

/// Whether the processor has AMX-TILE and AMX-BF16, and the system saves the registers.
fn has_instructions() -> bool {
    const XSAVE_TAKEN: u32 = 1 << 27;
    const BF16_AND_TILE: u32 = 1 << 22 | 1 << 24;
    const TILE_STATE: u64 = 0b11 << 17;
    let leaves = __cpuid(0).eax;
    leaves >= 7
        && __cpuid(1).ecx & XSAVE_TAKEN != 0
        && __cpuid_count(7, 0).edx & BF16_AND_TILE == BF16_AND_TILE
        // SAFETY: the system uses XSAVE, so there is the instruction that asks for what it saves.
        && unsafe { saved_state() } & TILE_STATE == TILE_STATE
}

/// The parts of a thread's state that the system saves.
///
/// # Safety
/// The system uses XSAVE.
#[target_feature(enable = "xsave")]
unsafe fn saved_state() -> u64 {
    // SAFETY: register 0 is there wherever XSAVE is in use.
    unsafe { _xgetbv(0) }
}

/// Asks the system for the registers, for all threads of this process.
#[cfg(target_os = "linux")]
fn is_permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: this request takes a number and touches no memory of ours.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

/// Only Linux is known to give the registers when it is asked.
#[cfg(not(target_os = "linux"))]
fn is_permitted() -> bool {
    false
}

thread_local! {
    /// Whether the registers of this thread are taken.
    static TAKEN: Cell<bool> = const { Cell::new(false) };
}

/// The registers of this thread: there is at most one such value on it, which [`Tiles::take`] makes.
pub(crate) struct Hardware {
    lines: usize,
    /// Registers do not move between threads.
    thread: PhantomData<*const ()>,
}

/// The shapes of all registers, as the processor reads them.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    line_bytes: [u16; 16],
    lines: [u8; 16],
}

impl Hardware {
    /// Gives all registers a shape, and sets them to zero.
    fn configure(&mut self, lines: usize) {
        assert!((1..=LINES).contains(&lines), "a register has 1 to 16 lines");
        let mut shapes = Shapes { palette: 1, start_row: 0, reserved: [0; 14], line_bytes: [0; 16], lines: [0; 16] };
        shapes.line_bytes[..8].fill(64);
        shapes.lines[..7].fill(lines as u8);
        shapes.lines[7] = LINES as u8;
        // SAFETY: the processor has the registers (see `take`), and reads the 64 bytes of `shapes`, which are a valid shape.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const shapes, options(nostack, readonly, preserves_flags));
        }
        self.lines = lines;
    }

    /// Panics unless `lines` hold as many as a register, `pitch` apart.
    #[inline(always)]
    fn check<L>(&self, lines: &[L], pitch: usize) {
        assert!((self.lines - 1) * pitch < lines.len(), "as many lines as a register has");
    }
}

impl Drop for Hardware {
    fn drop(&mut self) {
        // SAFETY: the processor has the registers.
        unsafe {
            asm!("tilerelease", options(nostack, nomem, preserves_flags));
        }
        TAKEN.set(false);
    }
}

impl Tiles for Hardware {
    fn take() -> Self {
        assert!(is_available(), "the processor has tile registers");
        assert!(!TAKEN.replace(true), "the tile registers of a thread are taken once at a time");
        let mut tiles = Self { lines: 0, thread: PhantomData };
        tiles.configure(LINES);
        tiles
    }

    fn set_lines(&mut self, lines: usize) {
        if lines != self.lines {
            self.configure(lines);
        }
    }

    #[inline(always)]
    fn zero<const SUMS: usize>(&mut self) {
        const { assert!(SUMS < 6) };
        // SAFETY: the registers are configured.
        unsafe {
            asm!("tilezero tmm{sums}", sums = const SUMS, options(nostack, nomem, preserves_flags));
        }
    }

    #[inline(always)]
    fn load_sums<const SUMS: usize>(&mut self, from: &[Line], pitch: usize) {
        const { assert!(SUMS < 6) };
        self.check(from, pitch);
        // SAFETY: the registers are configured, and all lines that one takes are in `from`, as checked.
        unsafe {
            asm!(
                "tileloadd tmm{sums}, [{from} + {stride}*1]",
                sums = const SUMS,
                from = in(reg) from.as_ptr(),
                stride = in(reg) pitch * size_of::<Line>(),
                options(nostack, readonly, preserves_flags),
            );
        }
    }

    #[inline(always)]
    fn store_sums<const SUMS: usize>(&mut self, to: &mut [Line], pitch: usize) {
        const { assert!(SUMS < 6) };
        self.check(to, pitch);
        // SAFETY: the registers are configured, and all lines that one takes are in `to`, as checked.
        unsafe {
            asm!(
                "tilestored [{to} + {stride}*1], tmm{sums}",
                sums = const SUMS,
                to = in(reg) to.as_mut_ptr(),
                stride = in(reg) pitch * size_of::<Line>(),
                options(nostack, preserves_flags),
            );
        }
    }

    #[inline(always)]
    fn load_rows(&mut self, from: &[HalfLine]) {
        self.check(from, 1);
        // SAFETY: the registers are configured, and all lines that one takes are in `from`, as checked.
        unsafe {
            asm!(
                "tileloadd tmm6, [{from} + {stride}*1]",
                from = in(reg) from.as_ptr(),
                stride = in(reg) size_of::<HalfLine>(),
                options(nostack, readonly, preserves_flags),
            );
        }
    }

    #[inline(always)]
    fn load_weights(&mut self, from: &[HalfLine; LINES]) {
        // SAFETY: the registers are configured, this one always with sixteen lines, which are in `from`.
        unsafe {
            asm!(
                "tileloadd tmm7, [{from} + {stride}*1]",
                from = in(reg) from.as_ptr(),
                stride = in(reg) size_of::<HalfLine>(),
                options(nostack, readonly, preserves_flags),
            );
        }
    }

    #[inline(always)]
    fn multiply<const SUMS: usize>(&mut self) {
        const { assert!(SUMS < 6) };
        // SAFETY: the registers are configured, with shapes that fit: n x 16 pairs, 16 x 16 pairs, and n x 16 sums.
        unsafe {
            asm!("tdpbf16ps tmm{sums}, tmm6, tmm7", sums = const SUMS, options(nostack, nomem, preserves_flags));
        }
    }

    fn round(low: &[Line], high: &[Line], step: usize, to: &mut [HalfLine]) {
        assert!(
            is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16"),
            "as processors with tiles have"
        );
        // SAFETY: the processor has the instructions.
        unsafe { round(low, high, step, to) }
    }
}

/// See [`Tiles::round`].
#[target_feature(enable = "avx512f,avx512bf16")]
fn round(low: &[Line], high: &[Line], step: usize, to: &mut [HalfLine]) {
    let store = |to: &mut HalfLine, low, high| {
        let halves = _mm512_cvtne2ps_pbh(high, low);
        // SAFETY: `to` is the 64 bytes of a line, and so is `halves`.
        unsafe { _mm512_storeu_si512(to.0.as_mut_ptr().cast(), std::mem::transmute::<__m512bh, __m512i>(halves)) };
    };
    // SAFETY: a line is sixteen numbers.
    let load = |line: &Line| unsafe { _mm512_loadu_ps(line.0.as_ptr()) };
    let low = low.iter().step_by(step);
    if high.is_empty() {
        for (to, low) in to.iter_mut().zip(low) {
            store(to, load(low), _mm512_setzero_ps());
        }
    } else {
        for (to, (low, high)) in to.iter_mut().zip(low.zip(high.iter().step_by(step))) {
            store(to, load(low), load(high));
        }
    }
}
