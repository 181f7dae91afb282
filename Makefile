# `make test` is what CI runs (.ci/run). It needs go, gcc (for the race
# detector), git and, the first time, a Go module proxy.

GO          ?= go
STATICCHECK ?= $(GO) run honnef.co/go/tools/cmd/staticcheck@v0.8.2
DEADCODE    ?= $(GO) run golang.org/x/tools/cmd/deadcode@v0.44.0
BENCH       := cmd/bench
FUZZTIME    ?= 60s

.PHONY: build cluster generate test test-long test-durable test-faults test-simulated soak bench fuzz \
	check-format check-vet check-static check-dead check-generated check-tidy test-unit test-bench

# The server and the operator's tool, as bin/troupe and bin/troupectl.
build:
	$(GO) build -o bin/ ./cmd/troupe ./cmd/troupectl

# Three members on loopback until Ctrl-C, their data in CLUSTER_DIR, or in a temporary
# folder that is removed. BIN is another binary with the same flags.
cluster: $(if $(BIN),,build)
	cmd/troupe/cluster.sh $(or $(BIN),bin/troupe) $(CLUSTER_DIR)

# The Go code of all .proto files.
generate:
	proto/generate.sh

# Quick checks first.
test: check-format check-tidy check-vet check-static check-dead check-generated test-unit test-bench

check-format:
	@bad=$$(gofmt -l .); if [ -n "$$bad" ]; then echo "run gofmt -w on:"; echo "$$bad"; exit 1; fi

check-tidy:
	$(GO) mod tidy -diff
	cd $(BENCH) && $(GO) mod tidy -diff

check-vet:
	$(GO) vet ./...
	cd $(BENCH) && $(GO) vet ./...

check-static:
	$(STATICCHECK) ./...
	cd $(BENCH) && $(STATICCHECK) ./...

# Functions that no command and no test reaches. What only tests reach is found by
# cmd/internal/tidy, together with methods, which this tool spares.
check-dead:
	@bad=$$($(DEADCODE) -test ./... && cd $(BENCH) && $(DEADCODE) -test ./...) || exit 1; \
		if [ -n "$$bad" ]; then echo "nothing calls:"; echo "$$bad"; exit 1; fi

# Generated code is committed; it must be what the .proto files say.
check-generated: generate
	@bad=$$(git status --porcelain -- proto); if [ -n "$$bad" ]; then \
		echo "generated code is stale: run make generate and commit"; echo "$$bad"; \
		git --no-pager diff -- proto; exit 1; fi

test-unit:
	$(GO) test -race -timeout 15m ./...

# The module of benchmarks: its unit tests, and a short differential test against
# real etcd, which is built from Go modules.
test-bench:
	cd $(BENCH) && $(GO) test -timeout 10m ./...

# What takes minutes: everything again without cached results, the full
# differential test, the proofs of durability, and clusters amid faults.
test-long: test
	$(GO) test -race -count=1 -timeout 30m ./...
	cd $(BENCH) && $(GO) run . diff -seeds 200 -steps 2000 -min-coverage 100
	cd $(BENCH) && $(GO) run . diff -auth -tls -seeds 100 -steps 1000 -min-coverage 1
	cd $(BENCH) && $(GO) run . diff -auth -decisions 500 -seeds 20 -steps 6000
	cd $(BENCH) && $(GO) test -count=1 -timeout 20m ./conformance/ctl -args -every-user -quorum
	$(MAKE) test-durable
	$(MAKE) test-simulated
	$(MAKE) test-faults

# Clusters of which a seed decides everything, the bugs that this must find, and how fast it
# is. The same seed has the same hash with and without the race detector.
HASHES = -count=1 -timeout 30m -v -run 'TestHash$$' ./cmd/internal/simtest | grep ': hash '
test-simulated:
	$(GO) test -count=1 -timeout 60m -v -run 'TestSeeds$$' ./cmd/internal/simtest -sim-seeds 5000 -sim-workers 2 | grep -v '^=== '
	$(GO) test -count=1 -timeout 60m -v -tags planted -run 'TestPlanted|TestMinimise' ./cmd/internal/simtest | grep -v '^=== '
	$(GO) test -count=1 -timeout 30m -v -run 'TestRate$$' ./cmd/internal/simtest -sim-rate | grep -v '^=== '
	plain=$$($(GO) test $(HASHES)) && race=$$($(GO) test -race $(HASHES)) && diff <(echo "$$plain") <(echo "$$race")

# The proofs of durability in their long form, some twenty minutes: what the short
# forms in test-unit play a few times. -v shows what came of it.
test-durable test-simulated: SHELL := /bin/bash
test-durable test-simulated: .SHELLFLAGS := -o pipefail -c
test-durable:
	TROUPE_WAL_CRASHES=10000 $(GO) test -count=1 -timeout 30m -v -run 'TestCrash$$|TestDamage' ./walactor/wal | grep -v '^ *--- \|^=== '
	$(GO) test -count=1 -timeout 30m -v -run 'TestReboot|TestLeasePromises' ./cmd/internal/node \
		-reboot-keys 100000 -lease-steps 3000 | grep '_test.go\|^---\|^ok\|FAIL'
	$(GO) test -count=1 -timeout 60m -v -run 'TestKill$$|TestKillLeases|TestPowerCut|TestDamagedImage|TestDiskFull' ./cmd/internal/crashtest \
		-kill-rounds 100 -lease-rounds 30 -power-cuts 2000 -damaged-bytes 3000 | grep -v '^=== '

# Clusters of three and of five processes amid faults, some twenty-five minutes each; then the
# shipped executable, a cluster with TLS and users, single faults and changes of TLS files, a
# minute of soak, and members under the race detector.
test-faults soak: SHELL := /bin/bash
test-faults soak: .SHELLFLAGS := -o pipefail -c
test-faults:
	$(GO) test -count=1 -timeout 3h -v -run 'TestClusterFaults' ./cmd/internal/crashtest \
		-faults 500 -fault-members 3,5 -fault-inject -fault-operations 1000000 -fault-strict | grep -v '^=== '
	$(GO) test -count=1 -timeout 60m -v -run 'TestClusterFaults' ./cmd/internal/crashtest \
		-faults 100 -fault-strict | grep -v '^=== '
	$(GO) test -count=1 -timeout 60m -v -run 'TestCluster[DS]|TestSoak' ./cmd/internal/crashtest -fault-strict -fault-all -swaps 10 | grep -v '^=== '
	$(GO) test -race -count=1 -timeout 60m -v -run 'TestClusterFaults' ./cmd/internal/crashtest \
		-faults 100 -fault-inject | grep -v '^=== '

# An hour of moderate load with a fault every 20 seconds, in which nothing may grow.
soak:
	$(GO) test -count=1 -timeout 2h -v -run TestSoak ./cmd/internal/crashtest \
		-fault-all -fault-strict -soak-for 1h | grep -v '^=== '

# Every fuzz target for FUZZTIME, one after another. An input that breaks one is
# left in testdata/fuzz beside it, where plain go test finds it again. Making
# inputs small is cut short: of large ones it would take all the time.
fuzz:
	@$(GO) test -list '^Fuzz' ./... | \
		awk '/^Fuzz/ { t[n++] = $$1 } /^ok/ { for (i = 0; i < n; i++) print $$2, t[i]; n = 0 }' | \
		while read package target; do \
			echo "$$package $$target"; \
			$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 100x $$package </dev/null || exit 1; \
		done

# Troupe beside real etcd; see cmd/bench/README.md.
bench:
	cd $(BENCH) && $(GO) run . bench -pairs 5 -load put,get -profile
