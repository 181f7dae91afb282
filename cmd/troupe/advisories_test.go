package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/rs/zerolog"
	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/raft/v3/raftpb"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/cmd/internal/certs/certstest"
	"github.com/troupe-db/troupe/cmd/internal/config"
	"github.com/troupe-db/troupe/walactor/wal"
	"github.com/troupe-db/troupe/walactor/wal/waltest"
)

// The published advisories of etcd, and of what it is built on as far as they concern it: each is
// tried against a member with TLS and authentication, which was started by its flags.

// advisory is a row of the table.
type advisory struct {
	ids      string // the CVE and the advisory of GitHub; or an issue of etcd that has neither
	possible string // what it made possible
	attempt  func(*target) string
	answer   string // what attempt must return
}

// Answers of several rows.
const (
	permissionDenied = "etcdserver: permission denied"
	userEmpty        = "etcdserver: user name is empty"
	loginFailed      = "etcdserver: authentication failed, invalid user ID or password"
	invalidToken     = "etcdserver: invalid auth token"
	nothing          = "" // an attempt that leads to nothing
)

var advisories = []advisory{
	{"CVE-2018-1098, GHSA-5gjm-fj42-x983", "a web page makes the browser of a client write keys", (*target).forgedForm, nothing},
	{"CVE-2018-1099, GHSA-wf43-55jj-vwq8", "a web page whose name is rebound to the member's address reads from it", (*target).rebound,
		"421 Misdirected Request"},
	{"CVE-2018-16886, GHSA-h6xx-pmxh-3wgp", "the certificate of an HTTP gateway makes its clients the user that it names", (*target).gatewayCertificate, userEmpty},
	{"CVE-2020-15106, GHSA-p4g4-wgrh-qrg2", "a record in the log with a wrong length ends the member in a panic", func(t *target) string {
		return t.forgedLog(func(header, _ []byte) { binary.LittleEndian.PutUint32(header[4:], 0x3fff_ffc0) })
	}, "corrupt"},
	{"CVE-2020-15112, GHSA-m332-53r6-2w93", "an entry in the log with a wrong index ends the member in a panic", func(t *target) string {
		return t.forgedLog(func(_, payload []byte) {
			const index = 10 + 8 // after the header of the record, and the term
			binary.LittleEndian.PutUint64(payload[index:], 1<<40)
		})
	}, "corrupt"},
	{"CVE-2020-15113, GHSA-chh6-ppwq-jh92", "other users of the machine read the data", (*target).permissions, nothing},
	{"CVE-2020-15114, GHSA-2xhq-gv6c-p224", "a gateway that has itself as an endpoint opens connections without end", (*target).gateway, noGateway},
	{"CVE-2020-15136, GHSA-wr2v-9rpq-c35q", "a gateway checks the TLS of some endpoints only", (*target).gateway, noGateway},
	{"GHSA-j86v-2vjr-fg8f", "a gateway takes an endpoint for one with TLS because it accepts connections", (*target).gateway, noGateway},
	{"GHSA-h8g9-6gvh-5mrc", "a gateway checks the TLS of its endpoints when it starts only", (*target).gateway, noGateway},
	{"CVE-2020-15115, GHSA-4993-m7g5-r9hh", "short passwords are allowed, and so is guessing them", (*target).guesses, loginFailed},
	{"GHSA-528j-9r78-wffx", "the log on disk has passwords", (*target).passwordsOnDisk, nothing},
	{"GHSA-9gp7-6833-wv89", "a negative size of the cluster ends a member that uses discovery in a panic", func(t *target) string {
		return t.flags("--discovery-token=x", "--discovery-endpoints=http://127.0.0.1:1")
	}, "discovery is not implemented"},
	{"GHSA-5x4g-q5rc-36jp", "insecure ciphers are allowed by default", (*target).insecureCiphers, "refused"},
	{"GHSA-vjg6-93fv-qv64", "a password is tried for a user who has only a certificate, and the answer is wrong", func(t *target) string {
		_, err := t.login("cert", "a password")
		return said(err)
	}, "auth: authentication failed, password was given for no password user"},
	{"GHSA-pm3m-32r3-7mfh", "a negative retention compacts without end", func(t *target) string { return t.flags("--auto-compaction-retention=-1h") },
		"error parsing CompactionRetention: -1h0m0s is negative"},
	{"CVE-2021-28235, GHSA-gmph-wf7j-9gcm", "pages for debugging have passwords", (*target).passwordsOnPages, nothing},
	{"CVE-2022-34038", "writes of certain sizes end the member in a panic", (*target).pages, nothing},
	{"CVE-2023-32082, GHSA-3p4g-rcw5-8298", "TimeToLive of a lease has names of keys that the user may not read", func(t *target) string {
		_, err := pb.NewLeaseClient(t.plain).LeaseTimeToLive(t.as("ann"), &pb.LeaseTimeToLiveRequest{ID: secretLease, Keys: true})
		return said(err)
	}, permissionDenied},
	{"CVE-2023-44487, CVE-2023-39325", "streams that are reset at once occupy the member without bound", (*target).rapidReset, nothing},
	{"CVE-2023-45142, CVE-2023-47108", "requests with ever new names of methods occupy memory in metrics", (*target).methods, nothing},
	{"CVE-2026-33186, GHSA-p77j-4mvh-x3m3", "a path without a slash passes checks that go by the path", (*target).pathWithoutSlash, "grpc-status 12"},
	{"CVE-2026-33343, GHSA-rfx7-8w68-q57q", "a transaction inside another one reads and writes all keys", (*target).nested, permissionDenied},
	{"CVE-2026-33413, GHSA-q8m4-xhhv-38mg", "clients without a user list members, raise alarms, use leases and compact", (*target).withoutUser, userEmpty},
	{"CVE-2026-44283, GHSA-x35m-3gp4-4fh5", "a put in a transaction returns the value before, and attaches a lease, without permission", (*target).putsInTxn, permissionDenied},
	{"CVE-2026-59818, GHSA-3wh4-j44w-pg92", "revoked certificates are let in by gRPC if HTTP has listeners of its own", (*target).revoked, "refused"},
	{"CVE-2026-73499, GHSA-xg4h-6gfc-h4m8", "a watch from a key on has all keys after it, with permission for the first", (*target).watchFromKey, permissionDenied},
	{"CVE-2026-73500, GHSA-6vch-q96h-7gc3", "connections that never begin their handshake occupy the member without bound", (*target).silent, nothing},
	{"etcd#15676", "a signed token without a user or revision ends the member in a panic", (*target).incompleteTokens, invalidToken},
	{"etcd#21993", "a signed token that cannot be read is written to the log", (*target).tokenInLog, nothing},
}

// TestAdvisories tries each advisory.
func TestAdvisories(t *testing.T) {
	v := newTarget(t)
	for _, row := range advisories {
		t.Run(row.ids, func(t *testing.T) {
			v.T = t
			if got := row.attempt(v); got != row.answer && (row.answer == nothing || !strings.Contains(got, row.answer)) {
				t.Errorf("%s: got %q, want %q", row.possible, got, row.answer)
			}
		})
	}
	v.T = t
	if got := v.read("secret"); got != secretValue {
		t.Errorf("after all attempts: got %q, want %q", got, secretValue)
	}
}

const (
	secretValue  = "HiddenValue"
	secretLease  = 7 // has the key secret
	annsPassword = "HiddenPassword"
)

// target is the member that is attacked. It has plain and TLS listeners for gRPC, and one for HTTP.
// Certificates name users. Ann reads the key r1, and writes those from w0 to w9.
type target struct {
	*testing.T
	pki *pki
	dir string
	// Addresses: of gRPC without TLS and with it, and of HTTP with TLS and without.
	grpc, secure, web, page string
	revokedPair             *certstest.Pair
	log                     *output
	plain                   *grpc.ClientConn
	tokens                  map[string]string
	mute                    []net.Conn // connections that have not finished their handshake
	letIn                   error      // of a client that connected meanwhile
}

func newTarget(t *testing.T) *target {
	t.Helper()
	p, addrs := newPKI(t), freePorts(t, 5)
	v := &target{T: t, pki: p, dir: filepath.Join(t.TempDir(), "data"), grpc: addrs[0], secure: addrs[1], web: addrs[2], page: addrs[4], log: new(output), tokens: map[string]string{}}
	_, v.revokedPair = p.client(t, "root")
	crl := filepath.Join(p.dir, "crl")
	certstest.Write(t, crl, p.ca.Revoke(t, v.revokedPair.Cert.SerialNumber))
	runMember(t, zerolog.New(v.log).Level(zerolog.TraceLevel), "--data-dir="+v.dir,
		"--listen-client-urls=http://"+v.grpc+",https://"+v.secure, "--advertise-client-urls=https://"+v.secure, "--listen-client-http-urls=https://"+v.web+",http://"+v.page,
		"--listen-peer-urls=http://"+addrs[3], "--initial-advertise-peer-urls=http://"+addrs[3], "--initial-cluster=default=http://"+addrs[3],
		"--cert-file="+p.cert, "--key-file="+p.key, "--trusted-ca-file="+p.caFile(), "--client-crl-file="+crl, "--client-cert-auth",
		"--cors=https://good.example:8443", "--host-whitelist=127.0.0.1", "--bcrypt-cost=4", "--warning-unary-request-duration=1ns", "--enable-pprof")
	// For the attempt with silent connections, whose time begins now.
	v.mute = append(v.connect(10, nil), v.connect(300, []byte{0x16, 0x03, 0x01})...)
	cfg, _ := p.client(t, "root")
	_, v.letIn = pb.NewKVClient(v.dial(v.secure, credentials.NewTLS(cfg))).Range(v.as(""), &pb.RangeRequest{Key: []byte("secret")})
	v.plain = v.dial(v.grpc, insecure.NewCredentials())
	v.protect(v.plain)
	for user, password := range map[string]string{"root": "rootpw", "ann": annsPassword} {
		token, err := v.login(user, password)
		if err != nil {
			t.Fatal(err)
		}
		v.tokens[user] = token
	}
	must(pb.NewLeaseClient(v.plain).LeaseGrant(v.as("root"), &pb.LeaseGrantRequest{ID: secretLease, TTL: 100_000}))
	must(pb.NewKVClient(v.plain).Put(v.as("root"), &pb.PutRequest{Key: []byte("secret"), Value: []byte(secretValue), Lease: secretLease}))
	return v
}

// must returns the value of a call that has to succeed.
func must[T any](value T, err error) T {
	if err != nil {
		panic(err) // the trace says where
	}
	return value
}

// protect adds users, and switches authentication on.
func (v *target) protect(conn grpc.ClientConnInterface) {
	v.Helper()
	a, ctx := pb.NewAuthClient(conn), v.as("")
	must(a.RoleAdd(ctx, &pb.AuthRoleAddRequest{Name: "r"}))
	for _, p := range []*authpb.Permission{{PermType: authpb.Permission_READ, Key: []byte("r1")},
		{PermType: authpb.Permission_WRITE, Key: []byte("w0"), RangeEnd: []byte("w9")}} {
		must(a.RoleGrantPermission(ctx, &pb.AuthRoleGrantPermissionRequest{Name: "r", Perm: p}))
	}
	for user, password := range map[string]string{"root": "rootpw", "ann": annsPassword, "cert": ""} {
		must(a.UserAdd(ctx, &pb.AuthUserAddRequest{Name: user, Password: password, Options: &authpb.UserAddOptions{NoPassword: password == ""}}))
		must(a.UserGrantRole(ctx, &pb.AuthUserGrantRoleRequest{User: user, Role: map[string]string{"root": "root", "ann": "r", "cert": "r"}[user]}))
	}
	must(a.AuthEnable(ctx, &pb.AuthEnableRequest{}))
}

func (v *target) dial(addr string, c credentials.TransportCredentials) *grpc.ClientConn {
	v.Helper()
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(c), grpc.WithDisableRetry())
	if err != nil {
		v.Fatal(err)
	}
	v.Cleanup(func() { _ = conn.Close() })
	return conn
}

// as returns the context of calls of a user; of nobody if it is empty.
func (v *target) as(user string) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	v.Cleanup(cancel)
	if user == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, rpctypes.TokenFieldNameGRPC, v.tokens[user])
}

func (v *target) login(user, password string) (token string, err error) {
	resp, err := pb.NewAuthClient(v.plain).Authenticate(v.as(""), &pb.AuthenticateRequest{Name: user, Password: password})
	return resp.GetToken(), err
}

// read returns the value of a key, as root.
func (v *target) read(key string) string {
	v.Helper()
	resp := must(pb.NewKVClient(v.plain).Range(v.as("root"), &pb.RangeRequest{Key: []byte(key)}))
	if len(resp.Kvs) == 0 {
		return nothing
	}
	return string(resp.Kvs[0].Value)
}

// said returns the text of an error.
func said(err error) string {
	if err == nil {
		return "allowed"
	}
	return status.Convert(err).Message()
}

// first returns what was not answered as wanted, or the answer if there is nothing else.
func first(want string, answers ...string) string {
	for i, a := range answers {
		if a != want {
			return fmt.Sprintf("attempt %d: %s", i, a)
		}
	}
	return want
}

// http makes a request of the member's HTTP with the certificate of root, as a browser may have it.
func (v *target) http(method, path, host, origin, body string) (*http.Response, string) {
	v.Helper()
	cfg, _ := v.pki.client(v.T, "root")
	req, err := http.NewRequestWithContext(v.as(""), method, "https://"+v.web+path, strings.NewReader(body))
	if err != nil {
		v.Fatal(err)
	}
	req.Host = host
	req.Header.Set("Content-Type", "text/plain")
	req.Header.Set("Origin", origin)
	transport := &http.Transport{TLSClientConfig: cfg}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		v.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		v.Fatal(err)
	}
	return resp, string(b)
}

func (v *target) forgedForm() string {
	const origin = "https://evil.example"
	for path, body := range map[string]string{
		"/v2/keys/forged":   "value=x",
		"/v3/kv/put":        `{"key":"Zm9yZ2Vk","value":"eA=="}`,
		"/v3/kv/txn":        `{"success":[{"request_put":{"key":"Zm9yZ2Vk","value":"eA=="}}]}`,
		"/v3/auth/disable":  `{}`,
		"/etcdserverpb.KV/": "",
	} {
		for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodOptions} {
			resp, text := v.http(method, path, v.web, origin, body)
			if allow := resp.Header.Get("Access-Control-Allow-Origin"); allow != "" || strings.Contains(text, "header") {
				return fmt.Sprintf("%s of %s: %s, %s, readable by %q", method, path, resp.Status, text, allow)
			}
		}
	}
	if resp, _ := v.http(http.MethodGet, "/version", v.web, "https://good.example:8443", ""); resp.Header.Get("Access-Control-Allow-Origin") == "" {
		return "the origin that is allowed is refused: the attempts prove nothing"
	}
	return v.read("forged")
}

func (v *target) rebound() string {
	req := must(http.NewRequestWithContext(v.as(""), http.MethodGet, "http://"+v.page+"/version", nil))
	req.Host = "evil.example"
	resp := must(http.DefaultClient.Do(req))
	resp.Body.Close()
	return resp.Status
}

func (v *target) gatewayCertificate() string {
	cfg, _ := v.pki.client(v.T, "root")
	a := pb.NewAuthClient(v.dial(v.secure, credentials.NewTLS(cfg)))
	if _, err := a.UserList(v.as(""), &pb.AuthUserListRequest{}); err != nil {
		return "the certificate does not name a user: the attempt proves nothing: " + said(err)
	}
	_, err := a.UserList(metadata.AppendToOutgoingContext(v.as(""), "grpcgateway-accept", "application/json"), &pb.AuthUserListRequest{})
	return said(err)
}

// forgedLog opens a log whose first batch was changed, with checksums that are right. The payload
// begins with an entry.
func (v *target) forgedLog(change func(header, payload []byte)) string {
	v.Helper()
	const dir, batch, headerBytes = "/wal", 4096, 64
	cfg := wal.Config{ClusterID: 1, MemberID: 2, SegmentBytes: wal.MinSegmentBytes, Spares: 1, TailBytes: 8 << 10, Rand: func() uint64 { return 3 }}
	open := func(change func(header, payload []byte)) error {
		fsys := waltest.New()
		var entries []*raftpb.Entry
		for i := range uint64(3) {
			entries = append(entries, &raftpb.Entry{Term: proto.Uint64(1), Index: proto.Uint64(i + 1), Data: []byte("x")})
		}
		must(wal.Create(fsys, dir, cfg, wal.Batch{Entries: entries, Sync: true}))
		fsys.Kill()
		var segment string
		for _, name := range must(fsys.List(dir)) {
			if strings.HasSuffix(name, ".wal") {
				segment = dir + "/" + name
			}
		}
		le, sum := binary.LittleEndian, crc32.MakeTable(crc32.Castagnoli)
		err := fsys.Damage(segment, func(b []byte) []byte {
			header := b[batch : batch+headerBytes]
			length := int(le.Uint32(header[4:]))
			payload := b[batch+headerBytes : batch+headerBytes+(length+63)&^63]
			change(header, payload)
			body := int(le.Uint32(payload[2:]))
			le.PutUint32(payload[6:], crc32.Update(crc32.Checksum(payload[:6], sum), sum, payload[10:10+body]))
			le.PutUint32(header[12:], crc32.Checksum(payload, sum))
			le.PutUint32(header[44:], crc32.Update(le.Uint32(b[batch-4:]), sum, header[:44]))
			le.PutUint32(header[60:], crc32.Checksum(header[:60], sum))
			return b
		})
		if err != nil {
			v.Fatal(err)
		}
		_, _, err = wal.Open(fsys, dir, cfg)
		return err
	}
	if err := open(func(_, _ []byte) {}); err != nil {
		return "the checksums are wrong: the attempt proves nothing: " + err.Error()
	}
	err := open(change)
	var corrupt *wal.CorruptError
	if !errors.As(err, &corrupt) {
		return fmt.Sprint("opened: ", err)
	}
	return "corrupt: " + err.Error()
}

// permissions returns what others may read or write in the data folder, although the process lets
// files have all permissions.
func (v *target) permissions() string {
	defer syscall.Umask(syscall.Umask(0))
	dir, addrs := filepath.Join(v.TempDir(), "data"), freePorts(v.T, 1)
	runMember(v.T, zerolog.Nop(), "--data-dir="+dir, "--listen-client-urls=http://"+addrs[0], "--advertise-client-urls=http://"+addrs[0],
		"--listen-peer-urls=http://127.0.0.1:0")
	open, seen := nothing, 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		seen++
		info, err := d.Info()
		if err != nil {
			return err
		}
		if info.Mode().Perm()&0o077 != 0 && (d.IsDir() || path == dir) {
			open += fmt.Sprintln(path, info.Mode())
		}
		return nil
	})
	if err != nil || seen < 5 {
		return fmt.Sprintf("%d files: %v", seen, err)
	}
	return open
}

const noGateway = `"gateway" is not a valid flag`

// gateway starts the commands of etcd beside the server, none of which Troupe has.
func (v *target) gateway() string {
	if got := v.flags("grpc-proxy", "start"); got != `"grpc-proxy" is not a valid flag` {
		return got
	}
	return v.flags("gateway", "start", "--endpoints=127.0.0.1:2379")
}

// flags returns why flags are refused.
func (v *target) flags(args ...string) string {
	_, _, err := config.Parse(args, nil)
	return said(err)
}

// guesses tries short passwords. That they are allowed is as in etcd, whose advisory asks
// administrators for long ones.
func (v *target) guesses() string {
	must(pb.NewAuthClient(v.plain).UserAdd(v.as("root"), &pb.AuthUserAddRequest{Name: "short", Password: "q"}))
	var answers []string
	for _, guess := range []string{"", "a", "b", "qq", "Q"} {
		for _, user := range []string{"short", "no such user"} {
			_, err := v.login(user, guess)
			answers = append(answers, said(err))
		}
	}
	return first(loginFailed, answers...)
}

// passwordsOnDisk returns the files that have a password. All users have logged in.
func (v *target) passwordsOnDisk() string {
	a := pb.NewAuthClient(v.plain)
	must(a.UserAdd(v.as("root"), &pb.AuthUserAddRequest{Name: "disk", Password: annsPassword + "1"}))
	must(a.UserChangePassword(v.as("root"), &pb.AuthUserChangePasswordRequest{Name: "disk", Password: annsPassword + "2"}))
	must(v.login("disk", annsPassword+"2"))
	found, users := nothing, false
	err := filepath.WalkDir(v.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, []byte(annsPassword)) {
			found += path + "\n"
		}
		users = users || bytes.Contains(b, []byte("disk"))
		return err
	})
	if err != nil || !users {
		return fmt.Sprintf("no file has the user: the attempt proves nothing: %v", err)
	}
	return found
}

func (v *target) passwordsOnPages() string {
	_, _ = v.login("ann", annsPassword+"Wrong")
	for _, path := range []string{"/debug/requests", "/debug/events", "/debug/vars", "/debug/actors", "/debug/pprof/cmdline", "/debug/pprof/goroutine?debug=2", "/metrics", "/health"} {
		if _, text := v.http(http.MethodGet, path, v.web, "", ""); strings.Contains(text, annsPassword) {
			return path + " has the password"
		}
	}
	if log := v.log.String(); strings.Contains(log, annsPassword) || !strings.Contains(log, "slow request") {
		return "the log has the password, or not even slow requests"
	}
	return nothing
}

// pages writes values of sizes around those of pages, and reads them again.
func (v *target) pages() string {
	kv := pb.NewKVClient(v.plain)
	for pages := range 4 {
		for off := -3; off <= 3; off++ {
			value := bytes.Repeat([]byte("x"), max(4096*pages+off*32, 0))
			if _, err := kv.Put(v.as("root"), &pb.PutRequest{Key: []byte("page"), Value: value}); err != nil {
				return said(err)
			}
			if got := v.read("page"); got != string(value) {
				return fmt.Sprintf("got %d bytes, want %d", len(got), len(value))
			}
		}
	}
	return nothing
}

// raw opens a connection of HTTP/2 to the plain listener.
func (v *target) raw() (net.Conn, *http2.Framer) {
	v.Helper()
	conn, err := net.Dial("tcp", v.grpc)
	if err == nil {
		err = conn.SetDeadline(time.Now().Add(time.Minute))
	}
	if err == nil {
		_, err = io.WriteString(conn, http2.ClientPreface)
	}
	if err != nil {
		v.Fatal(err)
	}
	v.Cleanup(func() { _ = conn.Close() })
	f := http2.NewFramer(conn, conn)
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if err := f.WriteSettings(); err != nil {
		v.Fatal(err)
	}
	return conn, f
}

// headers returns the headers of a call.
func headers(path string) []byte {
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	e.SetMaxDynamicTableSize(0)
	for _, h := range [][2]string{{":method", "POST"}, {":scheme", "http"}, {":path", path}, {":authority", "a"}, {"content-type", "application/grpc"}, {"te", "trailers"}} {
		_ = e.WriteField(hpack.HeaderField{Name: h[0], Value: h[1], Sensitive: true}) // into memory
	}
	return b.Bytes()
}

// rapidReset opens streams and resets them at once, while another client reads.
func (v *target) rapidReset() string {
	const streams, goroutinesMax, slowest = 20_000, 2_000, 5 * time.Second
	before := runtime.NumGoroutine()
	_, f := v.raw()
	go func() { // ends with the connection
		for {
			if _, err := f.ReadFrame(); err != nil {
				return
			}
		}
	}()
	done := make(chan struct{})
	go func() {
		defer close(done)
		block := headers("/etcdserverpb.KV/Range")
		for i := range uint32(streams) {
			err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*i + 1, BlockFragment: block, EndHeaders: true})
			if err == nil {
				err = f.WriteRSTStream(2*i+1, http2.ErrCodeCancel)
			}
			if err != nil {
				return // the member has ended the connection
			}
		}
	}()
	for reads := 0; ; reads++ {
		began := time.Now()
		v.read("secret")
		if took := time.Since(began); took > slowest {
			return fmt.Sprintf("a read took %v", took)
		}
		if n := runtime.NumGoroutine() - before; n > goroutinesMax {
			return fmt.Sprintf("%d goroutines more", n)
		}
		select {
		case <-done:
			return nothing
		default:
		}
	}
}

// methods makes calls of methods that do not exist, and returns what metrics say of them.
func (v *target) methods() string {
	for i := range 20 {
		method := fmt.Sprintf("/nonsense.Service%d/Method", i)
		if err := v.plain.Invoke(v.as("root"), method, &pb.PutRequest{}, &pb.PutResponse{}); err == nil {
			return "there is " + method
		}
		v.http(http.MethodGet, method, v.web, "", "")
		v.http("NONSENSE", "/version", v.web, "", "")
	}
	_, text := v.http(http.MethodGet, "/metrics", v.web, "", "")
	for line := range strings.Lines(text) {
		if strings.Contains(strings.ToLower(line), "nonsense") {
			return line
		}
	}
	return nothing
}

// pathWithoutSlash makes a call of ann, who may not write the key, with a path without its slash.
func (v *target) pathWithoutSlash() string {
	_, f := v.raw()
	message := must(proto.Marshal(&pb.PutRequest{Key: []byte("forged"), Value: []byte("x")}))
	data := binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message)))
	err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: headers("etcdserverpb.KV/Put"), EndHeaders: true})
	if err == nil {
		err = f.WriteData(1, true, append(data, message...))
	}
	for err == nil {
		var frame http2.Frame
		if frame, err = f.ReadFrame(); err != nil {
			break
		}
		switch frame := frame.(type) {
		case *http2.MetaHeadersFrame:
			for _, h := range frame.Fields {
				if h.Name == "grpc-status" {
					if got := v.read("forged"); got != nothing {
						return "written: " + got
					}
					return "grpc-status " + h.Value
				}
			}
		case *http2.RSTStreamFrame, *http2.GoAwayFrame:
			return fmt.Sprint("ended: ", frame)
		}
	}
	return err.Error()
}

func putIn(r *pb.PutRequest) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: r}}
}

func rangeIn(key string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte(key)}}}
}

// nested makes transactions of ann with what she may not do inside of another one, in either branch
// and in compares.
func (v *target) nested() string {
	var answers []string
	for _, op := range []*pb.RequestOp{
		rangeIn("secret"), putIn(&pb.PutRequest{Key: []byte("secret")}),
		{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte("secret")}}},
		{Request: &pb.RequestOp_RequestTxn{RequestTxn: &pb.TxnRequest{Compare: []*pb.Compare{{Key: []byte("secret"), TargetUnion: &pb.Compare_Version{}}}}}},
	} {
		for depth := range 4 {
			for _, success := range []bool{true, false} {
				t := &pb.TxnRequest{Success: []*pb.RequestOp{op}}
				if !success {
					t = &pb.TxnRequest{Failure: []*pb.RequestOp{op}}
				}
				for range depth {
					t = &pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestTxn{RequestTxn: t}}}}
				}
				_, err := pb.NewKVClient(v.plain).Txn(v.as("ann"), t)
				answers = append(answers, said(err))
			}
		}
	}
	return first(permissionDenied, answers...)
}

func (v *target) withoutUser() string {
	cluster, lease, m := pb.NewClusterClient(v.plain), pb.NewLeaseClient(v.plain), pb.NewMaintenanceClient(v.plain)
	ctx := v.as("")
	var answers []string
	add := func(_ any, err error) { answers = append(answers, said(err)) }
	add(cluster.MemberList(ctx, &pb.MemberListRequest{}))
	add(cluster.MemberList(ctx, &pb.MemberListRequest{Linearizable: true}))
	for action := range pb.AlarmRequest_AlarmAction_name {
		add(m.Alarm(ctx, &pb.AlarmRequest{Action: pb.AlarmRequest_AlarmAction(action), Alarm: pb.AlarmType_CORRUPT}))
	}
	add(lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: 100}))
	add(lease.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: secretLease}))
	add(lease.LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: secretLease}))
	add(lease.LeaseLeases(ctx, &pb.LeaseLeasesRequest{}))
	stream := must(lease.LeaseKeepAlive(ctx))
	if err := stream.Send(&pb.LeaseKeepAliveRequest{ID: secretLease}); err != nil {
		v.Fatal(err)
	}
	add(stream.Recv())
	add(pb.NewKVClient(v.plain).Compact(ctx, &pb.CompactionRequest{Revision: 1}))
	add(m.Defragment(ctx, &pb.DefragmentRequest{}))
	add(m.Status(ctx, &pb.StatusRequest{}))
	add(m.HashKV(ctx, &pb.HashKVRequest{}))
	return first(userEmpty, answers...)
}

// putsInTxn makes puts of ann in transactions, of a key that she may write and not read, and with a
// lease that has a key which she may not write.
func (v *target) putsInTxn() string {
	var answers []string
	for _, put := range []*pb.PutRequest{{Key: []byte("w1"), PrevKv: true}, {Key: []byte("w1"), Lease: secretLease}} {
		for _, t := range []*pb.TxnRequest{{Success: []*pb.RequestOp{putIn(put)}}, {Failure: []*pb.RequestOp{putIn(put)}},
			{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestTxn{RequestTxn: &pb.TxnRequest{Success: []*pb.RequestOp{putIn(put)}}}}}}} {
			_, err := pb.NewKVClient(v.plain).Txn(v.as("ann"), t)
			answers = append(answers, said(err))
		}
	}
	return first(permissionDenied, answers...)
}

// insecureCiphers makes handshakes with one insecure cipher each.
func (v *target) insecureCiphers() string {
	cfg, _ := v.pki.client(v.T, "root")
	shake := func(cipher uint16) string {
		one := cfg.Clone()
		one.MaxVersion, one.CipherSuites = tls.VersionTLS12, []uint16{cipher}
		conn, err := tls.Dial("tcp", v.secure, one)
		if err != nil {
			return "refused"
		}
		defer conn.Close()
		return "allowed: " + tls.CipherSuiteName(cipher)
	}
	if got := shake(tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256); got == "refused" {
		return "a secure cipher is refused: the attempts prove nothing"
	}
	var answers []string
	for _, c := range tls.InsecureCipherSuites() {
		answers = append(answers, shake(c.ID))
	}
	return first("refused", answers...)
}

func (v *target) revoked() string {
	cfg := &tls.Config{RootCAs: certstest.Pool(v.pki.ca), Certificates: []tls.Certificate{v.revokedPair.TLS()}}
	if status, body := fetch(v.T, cfg.Clone(), "https://"+v.web+"/version"); status != 0 {
		return "let in by HTTP: " + body
	}
	_, err := pb.NewKVClient(v.dial(v.secure, credentials.NewTLS(cfg))).Range(v.as(""), &pb.RangeRequest{Key: []byte("secret")})
	if text := said(err); !strings.Contains(text, "tls: ") {
		return text
	}
	return "refused"
}

func (v *target) watchFromKey() string {
	stream := must(pb.NewWatchClient(v.plain).Watch(v.as("ann")))
	var answers []string
	for _, end := range []string{"\x00", "z"} {
		for _, key := range []string{"r1", "\x00"} {
			err := stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{
				Key: []byte(key), RangeEnd: []byte(end), StartRevision: 1, PrevKv: true}}})
			if err != nil {
				v.Fatal(err)
			}
			answers = append(answers, must(stream.Recv()).CancelReason)
		}
	}
	return first(permissionDenied, answers...)
}

// connect opens connections to the listener with TLS, and sends the beginning of a handshake, or
// nothing.
func (v *target) connect(n int, start []byte) (all []net.Conn) {
	v.Helper()
	for range n {
		conn, err := net.Dial("tcp", v.secure)
		if err == nil {
			_, err = conn.Write(start)
		}
		if err != nil {
			v.Fatal(err)
		}
		all = append(all, conn)
	}
	return all
}

// silent waits for the end of the connections that were opened at the beginning of the test and have
// not finished their handshake, and checks that a client was let in meanwhile.
func (v *target) silent() string {
	const deadline = 15 * time.Second
	if v.letIn != nil {
		return "another client: " + said(v.letIn)
	}
	end := time.Now().Add(deadline)
	for i, conn := range v.mute {
		defer conn.Close()
		if err := conn.SetReadDeadline(end); err != nil {
			v.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Sprintf("connection %d lasts longer than %v", i, deadline)
		}
	}
	return nothing
}

// signed starts a member with signed tokens, and returns a function that reads with a token, and the
// revision and the secret of its tokens.
func (v *target) signed() (read func(token string) string, revision uint64, secret []byte, log *output) {
	v.Helper()
	addrs, dir := freePorts(v.T, 1), v.TempDir()
	secret, log = []byte("the secret of the servers"), new(output)
	certstest.Write(v.T, filepath.Join(dir, "key"), secret)
	runMember(v.T, zerolog.New(log).Level(zerolog.TraceLevel), "--data-dir="+filepath.Join(dir, "data"), "--listen-client-urls=http://"+addrs[0],
		"--advertise-client-urls=http://"+addrs[0], "--listen-peer-urls=http://127.0.0.1:0", "--bcrypt-cost=4",
		"--auth-token=jwt,sign-method=HS256,priv-key="+filepath.Join(dir, "key"))
	conn := v.dial(addrs[0], insecure.NewCredentials())
	v.protect(conn)
	return func(token string) string {
		ctx := metadata.AppendToOutgoingContext(v.as(""), rpctypes.TokenFieldNameGRPC, token)
		_, err := pb.NewKVClient(conn).Range(ctx, &pb.RangeRequest{Key: []byte("r1")})
		return said(err)
	}, must(pb.NewAuthClient(conn).AuthStatus(v.as(""), &pb.AuthStatusRequest{})).AuthRevision, secret, log
}

func (v *target) incompleteTokens() string {
	read, revision, secret, _ := v.signed()
	sign := func(claims jwt.MapClaims) string {
		claims["exp"] = time.Now().Add(time.Hour).Unix()
		return must(jwt.NewWithClaims(jwt.SigningMethodHS256, claims).SignedString(secret))
	}
	if got := read(sign(jwt.MapClaims{"username": "ann", "revision": revision})); got != "allowed" {
		return "a complete token: the attempts prove nothing: " + got
	}
	var answers []string
	for _, claims := range []jwt.MapClaims{{}, {"username": "ann"}, {"revision": revision}, {"username": nil, "revision": nil}, {"username": 1, "revision": revision},
		{"username": "ann", "revision": fmt.Sprint(revision)}, {"username": []string{"ann"}, "revision": map[string]int{}}} {
		answers = append(answers, read(sign(claims)))
	}
	return first(invalidToken, answers...)
}

func (v *target) tokenInLog() string {
	read, revision, _, log := v.signed()
	forged := must(jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{"username": "ann", "revision": revision}).SignedString([]byte("another secret")))
	if got := first(invalidToken, read("HiddenToken"), read("Hidden.Token.Parts"), read(forged), read(forged[:len(forged)-4])); got != invalidToken {
		return got
	}
	for line := range strings.Lines(log.String()) {
		if strings.Contains(line, "Hidden") || strings.Contains(line, forged[:40]) {
			return line
		}
	}
	return nothing
}
