//! Linear equations, as samplers and LoRAs need them.

/// Solves a x = b for a square a, [n, n], and b, [n, m], by elimination with the largest pivots: x, [n, m]. All in row-major order.
pub(super) fn solve(mut a: Vec<f64>, mut b: Vec<f64>, n: usize) -> Vec<f64> {
    let m = b.len() / n;
    for column in 0..n {
        let largest = |&i: &usize, &j: &usize| a[i * n + column].abs().total_cmp(&a[j * n + column].abs());
        let pivot = (column..n).max_by(largest).expect("rows are left");
        (0..n).for_each(|at| a.swap(column * n + at, pivot * n + at));
        (0..m).for_each(|at| b.swap(column * m + at, pivot * m + at));
        let (above, below) = a.split_at_mut((column + 1) * n);
        let pivot = &above[column * n..];
        let (known, left) = b.split_at_mut((column + 1) * m);
        let known = &known[column * m..];
        for (row, b) in below.chunks_exact_mut(n).zip(left.chunks_exact_mut(m)) {
            let factor = row[column] / pivot[column];
            row[column..].iter_mut().zip(&pivot[column..]).for_each(|(number, of_pivot)| *number -= factor * of_pivot);
            b.iter_mut().zip(known).for_each(|(number, known)| *number -= factor * known);
        }
    }
    for row in (0..n).rev() {
        for at in 0..m {
            let known: f64 = (row + 1..n).map(|k| a[row * n + k] * b[k * m + at]).sum();
            b[row * m + at] = (b[row * m + at] - known) / a[row * n + row];
        }
    }
    b
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_system_with_a_zero_on_its_diagonal_is_solved() {
        let a = vec![0.0, 2.0, 1.0, 1.0, 0.0, 0.0, 3.0, 1.0, -1.0];
        let x = solve(a, vec![7.0, 1.0, 2.0], 3); // x = (1, 2, 3)
        x.iter().zip([1.0, 2.0, 3.0]).for_each(|(got, want)| assert!((got - want).abs() < 1e-12, "{x:?}"));
    }

    #[test]
    fn several_right_sides_are_solved_at_once() {
        let a = vec![2.0, 1.0, 4.0, -1.0];
        let x = solve(a, vec![4.0, 1.0, 2.0, 5.0], 2); // (1, 2) and (1, -1)
        x.iter().zip([1.0, 1.0, 2.0, -1.0]).for_each(|(got, want)| assert!((got - want).abs() < 1e-12, "{x:?}"));
    }
}
