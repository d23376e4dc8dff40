# The commands of the README. Each installs what it needs (Debian packages, as root) and says so.

TARGET := x86_64-unknown-linux-gnu
.PHONY: build run test vm bench oracle conformance conformance-smoke needs test-needs fmt

# A static, non-PIE, stripped executable.
build: needs
	cargo build --release --locked --bin coracle
	cp -f target/$(TARGET)/release/coracle target/coracle.new && mv -f target/coracle.new target/coracle
	@ls -lh target/coracle

# A throw-away cluster with the sample workload; Ctrl-C ends it.
run: build
	target/coracle try --sample

test: needs test-needs
	cargo fmt --check
	cargo clippy --locked --all-targets --quiet -- -D warnings
	CORACLE_KUBECTL_DIR=$(CURDIR)/target/kubectl cargo test --locked

# Upstream's e2e suite against target/coracle (CORACLE= another): FOCUS, SKIP, SIG, PROCS …; see tests/upstream/conformance.
conformance: $(if $(CORACLE),,build)
	@tests/upstream/conformance

# A fixed part of it, against the executable that `make test` builds.
conformance-smoke: needs
	cargo build --locked --bin coracle
	@CORACLE=$(or $(CORACLE),target/$(TARGET)/debug/coracle) tests/upstream/conformance --smoke

# The recorded answers of upstream's API server: all, or ORACLE=<name or prefix>. See tests/oracle/README.md.
oracle: needs
	cargo test --locked --test it oracle::recorded_answers -- --nocapture

# A minute and some downloads, so not part of `test`: limits and OOM kills on cgroup v2, under a Debian kernel in qemu.
vm: build test-needs
	tests/vm/check target/coracle

bench: build
	cargo bench --locked

needs:
	@packaging/needs build

test-needs:
	@packaging/needs test

fmt:
	cargo fmt
