// Package conformance runs containerd's own suite for snapshotters against our daemon, as containerd sees it: through
// its socket and containerd's own proxy. Each case gets a daemon of its own with an empty root.
package conformance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	api "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// The daemon's program.
const daemonVariable = "SOCI_DAEMON"

// A start is a mount and a database: far less than this, also on a busy machine.
const startLimit = time.Minute

func TestSuite(t *testing.T) {
	program := os.Getenv(daemonVariable)
	if program == "" {
		t.Fatalf("%s does not name the daemon", daemonVariable)
	}
	// The name tells the suite what may be expected of renames.
	testsuite.SnapshotterSuite(t, "overlayfs", func(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		return start(ctx, program, root)
	})
}

func start(ctx context.Context, program, root string) (snapshots.Snapshotter, func() error, error) {
	config, socket := filepath.Join(root, "config.toml"), filepath.Join(root, "s.sock")
	// No containerd that it might ask.
	text := fmt.Sprintf("[content_store]\ncontainerd_address = %q\n", filepath.Join(root, "none.sock"))
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, nil, err
	}
	var log bytes.Buffer
	daemon := exec.Command(program, "--address", socket, "--root", filepath.Join(root, "d"), "--config", config)
	daemon.Stdout, daemon.Stderr = &log, &log
	if err := daemon.Start(); err != nil {
		return nil, nil, err
	}
	stop := func() error {
		return errors.Join(daemon.Process.Signal(syscall.SIGTERM), daemon.Wait())
	}
	connection, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, nil, errors.Join(err, stop())
	}
	client := api.NewSnapshotsClient(connection)
	limited, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	if _, err := client.Cleanup(limited, &api.CleanupRequest{}, grpc.WaitForReady(true)); err != nil {
		err = errors.Join(err, connection.Close(), stop())
		return nil, nil, fmt.Errorf("the daemon does not answer: %w\n%s", err, log.String())
	}
	end := func() error { return errors.Join(connection.Close(), stop()) }
	return proxy.NewSnapshotter(client, "soci"), end, nil
}
