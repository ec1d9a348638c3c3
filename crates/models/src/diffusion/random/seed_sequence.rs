//! NumPy's `SeedSequence` with a pool of 24 words: from a seed and a place in a tree to independent seeds.

/// The words that entropy is mixed into.
const POOL: usize = 24;

/// Gives the first `words` words of `SeedSequence(entropy, spawn_key, pool_size = 24)`.
pub fn generate_state(entropy: u64, spawn_key: &[u64], words: usize) -> Vec<u32> {
    let pool = pool(entropy, spawn_key);
    let mut hash: u32 = 0x8b51_f9dd;
    let word = |i: usize| {
        let mut value = pool[i % POOL] ^ hash;
        hash = hash.wrapping_mul(0x58f3_8ded);
        value = value.wrapping_mul(hash);
        value ^ (value >> 16)
    };
    (0..words).map(word).collect()
}

/// Mixes the entropy, and the key behind it, into a pool.
fn pool(entropy: u64, spawn_key: &[u64]) -> [u32; POOL] {
    let mut source = words_of(entropy);
    if !spawn_key.is_empty() {
        source.resize(POOL, 0);
        source.extend(spawn_key.iter().flat_map(|&key| words_of(key)));
    }
    let mut hash: u32 = 0x43b0_d7e5;
    let mut hashed = |mut value: u32| {
        value ^= hash;
        hash = hash.wrapping_mul(0x931e_8875);
        value = value.wrapping_mul(hash);
        value ^ (value >> 16)
    };
    let mut pool = [0; POOL];
    for (i, word) in pool.iter_mut().enumerate() {
        *word = hashed(source.get(i).copied().unwrap_or(0));
    }
    for from in 0..POOL {
        for to in (0..POOL).filter(|&to| to != from) {
            pool[to] = mixed(pool[to], hashed(pool[from]));
        }
    }
    for &word in source.iter().skip(POOL) {
        for to in &mut pool {
            *to = mixed(*to, hashed(word));
        }
    }
    pool
}

/// The 32-bit words of a number, lowest first, without leading zeros; 0 is one word.
fn words_of(number: u64) -> Vec<u32> {
    let high = (number >> 32) as u32;
    if high == 0 { vec![number as u32] } else { vec![number as u32, high] }
}

fn mixed(x: u32, y: u32) -> u32 {
    let mixed = x.wrapping_mul(0xca01_f9dd).wrapping_sub(y.wrapping_mul(0x4973_f715));
    mixed ^ (mixed >> 16)
}
