# A newcomer needs none of this: the README's two commands do everything.

# The main job with everything embedded.
upscale picture output:
    cargo run --release -- upscale {{picture}} -o {{output}}

# Before every commit; needs no services.
check: fmt lint
    cargo test --release --workspace

fmt:
    cargo fmt --all --check

lint:
    cargo clippy --release --workspace --all-targets -- -D warnings
    scripts/proto-lint

# All tests, against real services.
test:
    scripts/test

# The recorded cases of the reference; DIR holds folders with a cases.json.
goldens DIR="tests/golden":
    cargo build --release --workspace --bin goldens
    target/release/goldens {{DIR}}

# The benchmarks that print tables.
bench:
    cargo build --release --workspace --bins
    target/release/with-services cargo bench --workspace

# What networks and operations cost on this CPU; `just bench-cpu --python PATH` beside PyTorch, OpenVINO and others.
bench-cpu *ARGS:
    cargo bench -p benches -- {{ARGS}}
