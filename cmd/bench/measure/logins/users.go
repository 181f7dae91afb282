package logins

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/troupe-db/troupe/cmd/bench/measure/loadgen"
)

const (
	rootName, writerName, roleName = "root", "writer", "all keys"
	// setupClients is the number of clients that add users.
	setupClients = 4
	// loginTimeout is the timeout of a login that is measured: that within which etcd's client is
	// often told to connect.
	loginTimeout = 5 * time.Second
)

func userName(i int) string { return fmt.Sprintf("user%05d", i) }

func password(user string) string { return user + " password" }

// addUsers adds root, the writer and the users, and switches authentication on.
func addUsers(ctx context.Context, cfg Config, endpoint string) (err error) {
	pool, err := loadgen.Dial(endpoint, setupClients, cfg.dialOptions()...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, pool.Close()) }()
	auth := pb.NewAuthClient(pool[0])
	everything := &authpb.Permission{PermType: authpb.Permission_READWRITE, Key: []byte{0}, RangeEnd: []byte{0}}
	for _, step := range []func() error{
		func() error { _, err := auth.RoleAdd(ctx, &pb.AuthRoleAddRequest{Name: roleName}); return err },
		func() error {
			_, err := auth.RoleGrantPermission(ctx, &pb.AuthRoleGrantPermissionRequest{Name: roleName, Perm: everything})
			return err
		},
		func() error { return addUser(ctx, auth, rootName, rootName) },
		func() error { return addUser(ctx, auth, writerName, roleName) },
		func() error {
			return loadgen.Each(ctx, pool, setupClients, cfg.Users, func(ctx context.Context, _ pb.KVClient, i int) error {
				return addUser(ctx, pb.NewAuthClient(pool[i%len(pool)]), userName(i), roleName)
			})
		},
		func() error { _, err := auth.AuthEnable(ctx, &pb.AuthEnableRequest{}); return err },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func addUser(ctx context.Context, auth pb.AuthClient, name, role string) error {
	if _, err := auth.UserAdd(ctx, &pb.AuthUserAddRequest{Name: name, Password: password(name)}); err != nil {
		return err
	}
	_, err := auth.UserGrantRole(ctx, &pb.AuthUserGrantRoleRequest{User: name, Role: role})
	return err
}

// logIn returns a token.
func logIn(ctx context.Context, timeout time.Duration, cc *grpc.ClientConn, name, password string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	r, err := pb.NewAuthClient(cc).Authenticate(ctx, &pb.AuthenticateRequest{Name: name, Password: password})
	if err != nil {
		return "", err
	}
	return r.Token, nil
}

// put returns the put of a client that has logged in.
func put(token string) loadgen.Op {
	return func(ctx context.Context, kv pb.KVClient) error {
		ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(ctx, rpctypes.TokenFieldNameGRPC, token), requestTimeout)
		defer cancel()
		_, err := kv.Put(ctx, &pb.PutRequest{Key: fmt.Appendf(nil, "key/%08d", rand.IntN(loadKeys)), Value: make([]byte, valueBytes)})
		return err
	}
}
