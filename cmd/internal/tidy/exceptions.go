package tidy

// sideways are permitted imports that do not go down the ranks, with the reason.
var sideways = map[[2]string]string{
	{"actors/actorstest", "actors"}:                  "test support of the kit",
	{"walactor/wal/waltest", "walactor/wal"}:         "test support of the core",
	{"raftactor/peer/peertest", "raftactor/peer"}:    "test support of the transport",
	{"raftactor/peer/peertest", "raftactor/replica"}: "it stands in for the transport",

	{"mvccactor/backend/backendtest", "mvccactor/backend"}: "test support of the adapter",
	{"mvccactor/backend/backendtest", "walactor/wal"}:      "its stores are in the folders of a file system",

	{"applyactor/apply", "applyactor/auth"}: "users and roles are a part of what apply applies",

	{"mvccactor/snapshot", "mvccactor/backend"}: "a snapshot is read from a store and written to one",
	{"mvccactor/snapshot", "walactor/wal"}:      "log and stores have one file system",

	{"proto/mvccmsg", "proto/applymsg"}: "mvcc executes the requests that apply hears",
	{"proto/mvccmsg", "proto/raftmsg"}:  "mvcc answers with raft's results",
	{"proto/peerpb", "proto/raftmsg"}:   "proposals are forwarded between members",
	{"proto/leasemsg", "proto/raftmsg"}: "the outcome of a proposal is one of raft's codes",

	{"proto/peerpb", "proto/raftmsg"}: "a frame carries proposals between proposers",

	{"cmd/troupe", "cmd/internal/certs"}:            "cmd may import cmd/internal",
	{"cmd/troupe", "cmd/internal/config"}:           "cmd may import cmd/internal",
	{"cmd/troupe", "cmd/internal/logging"}:          "cmd may import cmd/internal",
	{"cmd/troupe", "cmd/internal/node"}:             "cmd may import cmd/internal",
	{"cmd/troupe", "cmd/internal/core"}:             "cmd may import cmd/internal",
	{"cmd/troupectl", "cmd/internal/core"}:          "cmd may import cmd/internal",
	{"cmd/internal/node", "cmd/internal/core"}:      "a node is a core with a gateway and loops",
	{"cmd/internal/node", "cmd/internal/monitor"}:   "the monitors are loops at the edge of a node",
	{"cmd/internal/logging", "cmd/internal/config"}: "the log is configured by flags",
	{"cmd/internal/config", "cmd/internal/certs"}:   "a flag is stored where it has its effect",
	{"cmd/internal/config", "cmd/internal/node"}:    "a flag is stored where it has its effect",
}

// viewCore is the only core that other cores may import: its View holds members and
// leases as immutable messages.
const viewCore = "mvccactor/mvcc"

// inner are packages inside a room that have actors of their own, and so the rank of a
// room.
var inner = map[string]string{
	"applyactor/authn": "the workers that hash passwords, at the edge",
	"raftactor/peer":   "the senders to other members, at the edge",
}

// impure are packages inside a room that are adapters to the outside, behind an interface
// that also has an implementation in memory.
var impure = map[string]string{
	"mvccactor/backend":   "adapter of badger",
	"mvccactor/snapshot":  "adapter of the folders of stores",
	"raftactor/peer":      "adapter of the network",
	"raftactor/peer/port": "connections of both ports, before a server has them",
}

// standIns are files of adapters that a simulation runs in place of the outside.
var standIns = []string{"mvccactor/backend/memory.go"}

// unsimulated is what CheckSimulated finds and permits, by file and finding, with the
// reason.
var unsimulated = map[[2]string]string{
	{"actors/runtime.go", "time.Now"}:             "the runtime in production",
	{"actors/runtime.go", "time.Since"}:           "the runtime in production",
	{"actors/runtime.go", "runtime.Gosched"}:      "the runtime in production",
	{"actors/runtime.go", "time.AfterFunc"}:       "the runtime in production",
	{"actors/runtime.go", "math/rand/v2.Float64"}: "the runtime in production",
	{"actors/dispatcher.go", "go"}:                "the dispatchers in production",

	{"actors/runtime.go", "select"}: "after Park; the outcome does not depend on the choice",
	{"actors/edge.go", "select"}:    "after Park; the outcome does not depend on the choice",
	{"actors/gate.go", "select"}:    "after Park; the outcome does not depend on the choice",
	{"actors/mailbox.go", "select"}: "after Park; the outcome does not depend on the choice",
	{"actors/reply.go", "select"}:   "after Park; the outcome does not depend on the choice",

	{"mvccactor/metrics.go", "time.Now"}:   "statistics only",
	{"walactor/wal/preparer.go", "select"}: "closes all files; their order has no effect",
}

// testSupport are packages that only tests import.
var testSupport = []string{"actors/actorstest", "walactor/wal/waltest", "mvccactor/backend/backendtest", "mvccactor/mvcc/mvcctest", "raftactor/peer/peertest", "cmd/internal/crashtest", "cmd/internal/links", "cmd/internal/certs/certstest"}

// implemented are names that CheckUnused skips, with the reason: methods that other
// modules call through an interface, and functions that only tests use.
var implemented = map[string]string{
	"Unwrap": "errors.Is and errors.As", "GRPCStatus": "package status of gRPC",
	"Pop": "heap.Interface",

	"HandleFailure": "actor.SupervisorStrategy", "Throughput": "actor.Dispatcher",
	"PostUserMessage": "actor.Mailbox", "PostSystemMessage": "actor.Mailbox",
	"RegisterHandlers": "actor.Mailbox", "UserMessageCount": "actor.Mailbox",

	"Infoln": "grpclog.LoggerV2", "Warningln": "grpclog.LoggerV2", "Errorln": "grpclog.LoggerV2",
	"Fatalln": "grpclog.LoggerV2", "V": "grpclog.LoggerV2",
	"Warningf": "raft.Logger and badger.Logger", "Fatalf": "raft.Logger", "Panicf": "raft.Logger",

	"LeaseTimeToLive": "etcdserverpb.LeaseServer", "LeaseLeases": "etcdserverpb.LeaseServer",
	"LeaseKeepAlive": "etcdserverpb.LeaseServer", "Defragment": "etcdserverpb.MaintenanceServer",
	"MemberList": "etcdserverpb.ClusterServer", "MemberAdd": "etcdserverpb.ClusterServer",
	"MemberRemove": "etcdserverpb.ClusterServer", "MemberUpdate": "etcdserverpb.ClusterServer",
	"MemberPromote": "etcdserverpb.ClusterServer",

	"ServerHandshake": "credentials.TransportCredentials", "ClientHandshake": "credentials.TransportCredentials",
	"OverrideServerName": "credentials.TransportCredentials",
	"AuthEnable":         "etcdserverpb.AuthServer", "AuthDisable": "etcdserverpb.AuthServer", "AuthStatus": "etcdserverpb.AuthServer",
	"UserAdd": "etcdserverpb.AuthServer", "UserGet": "etcdserverpb.AuthServer", "UserList": "etcdserverpb.AuthServer",
	"UserDelete": "etcdserverpb.AuthServer", "UserChangePassword": "etcdserverpb.AuthServer",
	"UserGrantRole": "etcdserverpb.AuthServer", "UserRevokeRole": "etcdserverpb.AuthServer",
	"RoleAdd": "etcdserverpb.AuthServer", "RoleGet": "etcdserverpb.AuthServer", "RoleList": "etcdserverpb.AuthServer",
	"RoleDelete": "etcdserverpb.AuthServer", "RoleGrantPermission": "etcdserverpb.AuthServer",
	"RoleRevokePermission": "etcdserverpb.AuthServer", "Downgrade": "etcdserverpb.MaintenanceServer",

	"IsBoolFlag": "package flag", "Println": "promhttp.Logger", "Describe": "prometheus.Collector",
	"Slice": "mem.Buffer", "Network": "net.Addr",

	"Poll":      "tests look for an answer without waiting",
	"NewFaults": "tests arm faults", "Delay": "tests arm faults", "ArmEntry": "tests arm faults",
	"NewMemory": "the store in memory is for tests", "Reopen": "the store in memory is for tests",
	"FailCommit": "the store in memory is for tests", "Drop": "the store in memory is for tests",
	"BeforeEach":   "the store in memory is for tests",
	"DurableIndex": "the model of the log compares it",
	"SetRuntime":   "simulations replace the runtime",
	"Plant":        "the build with planted bugs switches one on",
	"Connected":    "tests wait for a connection",
}

// topLevel lists what the root may contain, besides what .gitignore names.
var topLevel = []string{
	".ci", ".git", ".gitignore",
	"ARCHITECTURE.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md", "go.mod", "go.sum",
	"actors", "applyactor", "cmd", "grpcgw", "leaseactor", "mvccactor", "proto", "raftactor", "walactor", "watchactor",
}

// commands lists what cmd and cmd/internal may contain.
var commands = map[string][]string{
	"cmd":          {"bench", "internal", "troupe", "troupectl"},
	"cmd/internal": {"certs", "config", "core", "crashtest", "links", "logging", "monitor", "node", "simtest", "tidy"},
}

// Packages in which a banned identifier may be used.
var (
	nowhere []string
	kit     = []string{"actors", "actors/actorstest"}
)

// ban says why an identifier is banned, what to use, and where it is allowed.
type ban struct {
	why     string
	allowed []string
}

// banned are the parts of protoactor-go that lose or reorder messages, queue them
// without a limit, or cost far more than they seem to. The names are those of its
// package actor, and of methods.
var banned = map[string]ban{
	"Bounded":                       {"it spins when full; use actors.Mailbox", nowhere},
	"BoundedDropping":               {"it loses messages silently; use actors.Mailbox with class Lossy", nowhere},
	"Unbounded":                     {"it has no limit; use actors.Mailbox", kit},
	"UnboundedLockfree":             {"it has no limit; use actors.Mailbox", kit},
	"UnboundedPriority":             {"it has no limit; use lanes of actors.Mailbox", nowhere},
	"WithMailbox":                   {"mailboxes are made by actors.NewMailbox", kit},
	"MessageBatch":                  {"it delivers each message twice; use *actors.Batch", nowhere},
	"SetReceiveTimeout":             {"it is a data race; use actors.Ticker", nowhere},
	"Stash":                         {"it replays in reverse order", nowhere},
	"RequestFuture":                 {"it costs ten allocations; send, and hear the answer as a message", nowhere},
	"ReenterAfter":                  {"it runs closures of a dead incarnation; post a message", nowhere},
	"StopFuture":                    {"its timeout is fixed; use the supervisors of actors", kit},
	"PoisonFuture":                  {"its timeout is fixed; use the supervisors of actors", kit},
	"NewAllForOneStrategy":          {"it does not suspend healthy siblings; use actors.StartCore", nowhere},
	"NewOneForOneStrategy":          {"it restarts in place; use actors.StartEdge", nowhere},
	"NewRestartingStrategy":         {"it restarts in place; use actors.StartEdge", nowhere},
	"NewExponentialBackoffStrategy": {"it is linear and unbounded; use actors.StartEdge", nowhere},
	"RestartDirective":              {"the message in hand is lost and the next one applied; fail instead", kit},
	"EscalateDirective":             {"with a guardian it panics the process", nowhere},
	"WithGuardian":                  {"with EscalateDirective it panics the process", nowhere},
	"WithReceiverMiddleware":        {"it makes an envelope for each message", nowhere},
	"WithContextDecorator":          {"it doubles the cost of a message", nowhere},
	"WithMetricProviders":           {"it costs twenty messages for each; actors.Registry has the numbers", nowhere},
	"WithDefaultPrometheusProvider": {"it costs twenty messages for each; actors.Registry has the numbers", nowhere},
}

// bannedPackages are packages of protoactor-go that nothing may import, with those
// below them.
var bannedPackages = map[string]string{
	"remote":    "it has no authentication and no backpressure; peers talk over their own gRPC streams",
	"cluster":   "membership is raft's",
	"metrics":   "it costs twenty messages for each; actors.Registry has the numbers",
	"router":    "it hides the order of messages",
	"scheduler": "its timers outlive their actor; use actors.Ticker",
	"stream":    "it is unbounded; use actors.Mailbox",
}
