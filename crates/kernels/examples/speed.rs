use kernels::{chain::*, level::Level, picture::Picture};
use std::time::Instant;
fn rnd(n: usize, s: f32, seed: u64) -> Vec<f32> { let mut z = seed.wrapping_mul(0x9E3779B97F4A7C15) | 1; (0..n).map(|_| { z ^= z << 13; z ^= z >> 7; z ^= z << 17; ((z >> 40) as f32 / 8388608.0 - 1.0) * s }).collect() }
fn direct(x: &[f32], ci: usize, h: usize, w: usize, wt: &[f32], b: &[f32]) -> Vec<f32> {
    let co = b.len(); let mut y = vec![0f32; co * h * w];
    for o in 0..co { for yy in 0..h { for xx in 0..w { let mut a = b[o] as f64; for c in 0..ci { for ky in 0..3 { for kx in 0..3 { let (sy, sx) = (yy + ky, xx + kx); if sy >= 1 && sx >= 1 && sy <= h && sx <= w { a += x[((sy - 1) * w + sx - 1) * ci + c] as f64 * wt[(o * ci + c) * 9 + ky * 3 + kx] as f64; } } } } y[(yy * w + xx) * co + o] = a as f32; } } }
    y
}
fn main() {
    let level: Level = std::env::args().nth(1).map_or(Level::detect(), |l| l.parse().unwrap());
    // correctness of one conv
    for (ci, co, h, w) in [(3, 5, 1, 1), (20, 40, 13, 9), (64, 32, 17, 70)] {
        let (x, wt, b) = (rnd(h * w * ci, 1.0, 1), rnd(co * ci * 9, 0.1, 2), rnd(co, 0.1, 3));
        let mut c = Chain::new(level); let i = c.given(ci); c.conv(&[i], Conv { weight: &wt, bias: &b, activation: Activation::None, residuals: vec![], doubled: false });
        let mut out = vec![0f32; h * w * co];
        c.run(&[&Picture::from_pixels(&x, h, w, ci, 1)], Output::Pixels(Pixels { out: &mut out, channels: co, shuffle: 1, base: None }), &mut Workspace::default(), &|_| true).unwrap();
        let want = direct(&x, ci, h, w, &wt, &b); let d = out.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        println!("{ci}->{co} {h}x{w}: max diff {d}");
    }
    let hw: usize = std::env::args().nth(2).map_or(64, |l| l.parse().unwrap());
    let mut c = Chain::new(level); let x = c.given(64); let mut maps = vec![x];
    for k in 0..5 { let ci = 64 + 32 * k; let co = if k == 4 { 64 } else { 32 }; let (wt, b) = (rnd(co * ci * 9, 0.05, k as u64 + 5), rnd(co, 0.1, 3));
        let m = c.conv(&maps, Conv { weight: &wt, bias: &b, activation: if k < 4 { Activation::LeakyRelu(0.2) } else { Activation::None }, residuals: if k < 4 { vec![] } else { vec![(0.2, x)] }, doubled: false }); maps.push(m); }
    let mut a = Picture::from_pixels(&rnd(hw * hw * 64, 1.0, 9), hw, hw, 64, 1); let mut b = Picture::zeros(64, hw, hw); let mut ws = Workspace::default();
    for _ in 0..3 { let t = Instant::now(); let n = 20; for _ in 0..n { c.run(&[&a], Output::Picture(&mut b), &mut ws, &|_| true).unwrap(); std::mem::swap(&mut a, &mut b); }
        let t = t.elapsed().as_secs_f64() / n as f64; println!("RDB {hw}: {:.3} ms, {:.1} GFLOP/s direct-equivalent; x69 = {:.3} s", t * 1e3, c.work() * 2.0 * (hw * hw) as f64 / t / 1e9, t * 69.0); }
}
