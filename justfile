# Recipes for the commands in CONTRIBUTING.md: https://just.systems. Each is one command that can
# be run without just.

# List the recipes.
default:
    @just --list

# Install what the other recipes need: rustfmt, clippy, nightly with Miri, cargo-fuzz, the hook.
setup: hooks
    rustup component add rustfmt clippy
    rustup toolchain install nightly --profile minimal --component miri,rust-src
    cargo install --locked cargo-fuzz

# Check each commit message as it is written.
hooks:
    git config core.hooksPath scripts/hooks

# Run every test, and say which could not run.
test:
    scripts/test

# Run the tests of one suite (a file or folder of tests/): just test-one api counters
test-one suite *filter:
    cargo test --all-features --test {{suite}} {{filter}}

# Run the unit tests of one module: just test-unit engine::index
test-unit filter:
    cargo test --all-features --lib {{filter}}

# Run one suite with a seed, as a failure names it: just test-seed 42 kill
test-seed seed suite *filter:
    KEEPWARM_SEED={{seed}} cargo test --all-features --test {{suite}} {{filter}} -- --nocapture

# Run every test but those in the documentation with cargo-nextest.
nextest *arguments:
    cargo nextest run --all-features {{arguments}}

# Format, then run every lint and the checks of words, widths and commit messages.
lint:
    cargo fmt --all
    cargo clippy --workspace --all-targets --all-features -- -D warnings
    cargo clippy --all-targets --no-default-features -- -D warnings
    scripts/check-words
    scripts/check-commits

# Build the documentation; warnings are errors.
doc *arguments:
    RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --all-features {{arguments}}

# Check that it builds for other systems: aarch64-apple-darwin, x86_64-pc-windows-gnu ...
check-target target:
    rustup target add {{target}}
    cargo check --target {{target}}

# Look for undefined behaviour in the tests that need no files.
miri:
    scripts/miri

# Fuzz one target for a minute or as many seconds as given: just fuzz record_decode 600
fuzz target seconds="60":
    cargo +nightly fuzz run {{target}} -- -max_total_time={{seconds}}

# Measure each operation in time; with a filter only some: just bench get_bytes
bench *filter:
    cargo bench --bench engine -- {{filter}}

# Compare with other engines, in the short form.
compare *arguments="--quick":
    cargo run --release -p keepwarm-comparison -- {{arguments}}

# Count the instructions of each operation; with two trees, compare: just instructions ../old .
instructions *trees:
    scripts/instructions {{trees}}

# Run everything that CI runs: about 40 minutes on two cores.
ci:
    .ci/run
