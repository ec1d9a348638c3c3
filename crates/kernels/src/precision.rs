//! How exactly a kernel computes.

/// How exactly a kernel computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Precision {
    /// f32 throughout.
    Exact,
    /// Products of bf16 numbers, summed in f32, where the processor gains from it; f32 elsewhere.
    Fast,
}
