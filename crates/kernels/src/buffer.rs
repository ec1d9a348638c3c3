//! Memory for results.

/// From how many bytes on the allocator takes memory from the system each time, and gives it back.
const LARGE_BYTES: usize = 32 << 20;
/// Bytes of a page; a multiple of them where pages are larger, so that less is asked for.
#[cfg(target_os = "linux")]
const PAGE_BYTES: usize = 1 << 16;

/// `count` zeros. Where they are many, the system is asked for large pages, which come a hundred times faster than as many small
/// ones: a map of 128 channels of 512 x 512 pixels has 32768 of these.
pub fn zeros(count: usize) -> Vec<f32> {
    let numbers = vec![0.0f32; count];
    let bytes = count * size_of::<f32>();
    if bytes >= LARGE_BYTES {
        large_pages(numbers.as_ptr() as usize, bytes);
    }
    numbers
}

#[cfg(target_os = "linux")]
fn large_pages(start: usize, bytes: usize) {
    let first = start.next_multiple_of(PAGE_BYTES);
    let end = (start + bytes) / PAGE_BYTES * PAGE_BYTES;
    // SAFETY: the pages lie within a vector, and this only says how they shall be mapped. A system that cannot says so, and
    // nothing is lost.
    unsafe { libc::madvise(first as *mut libc::c_void, end - first, libc::MADV_HUGEPAGE) };
}

#[cfg(not(target_os = "linux"))]
fn large_pages(_: usize, _: usize) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_and_small_ones_are_zeros_that_can_be_written() {
        for count in [0, 5, LARGE_BYTES / 4 - 1, LARGE_BYTES / 4, LARGE_BYTES / 4 + 12345] {
            let mut numbers = zeros(count);
            assert!(numbers.len() == count && numbers.iter().all(|x| x.to_bits() == 0));
            numbers.fill(1.0);
            assert!(numbers.iter().all(|x| *x == 1.0));
        }
    }
}
