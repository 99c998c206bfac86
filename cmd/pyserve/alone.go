package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/pyserve/pyserve/config"
	"github.com/pyserve/pyserve/config/bundle"
	"github.com/pyserve/pyserve/node"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
)

// runAlone runs a node from a file, without control, gossip or anything on disk.
func runAlone(ctx context.Context, o nodeOptions, logger *slog.Logger) error {
	registry := newRegistry()
	p := &nodeProcess{}
	err := p.openNode(o, registry, nil, logger)
	if err == nil {
		p.undo.add(p.node.Stop)
		err = serveFile(p.node, o.config, 1, logger)
	}
	if err == nil {
		reloadOnHangUp(ctx, p.node, o.config, logger)
		logger.Info("stopping: finishing what is under way; a second signal stops at once")
	}
	draining, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	return errors.Join(err, p.undo.run(draining))
}

// reloadOnHangUp reads the file again at every SIGHUP until ctx ends. A file that is refused changes nothing.
func reloadOnHangUp(ctx context.Context, n *node.Node, file string, logger *slog.Logger) {
	hangUp := make(chan os.Signal, 1)
	signal.Notify(hangUp, syscall.SIGHUP)
	defer signal.Stop(hangUp)
	for revision := uint64(2); ; revision++ {
		select {
		case <-hangUp:
			if err := serveFile(n, file, revision, logger); err != nil {
				logger.Error("the file was not taken; serving what was before", "error", err)
			}
		case <-ctx.Done():
			return
		}
	}
}

func serveFile(n *node.Node, file string, revision uint64, logger *slog.Logger) error {
	document, files, err := readDocument(file)
	if err != nil {
		return err
	}
	resources, problems := config.Parse(document, files)
	for _, p := range problems {
		if p.Warning {
			logger.Warn(file + ":" + p.String())
		}
	}
	if resources == nil {
		return describeProblems(file, problems)
	}
	b, err := bundle.Encode(resources)
	if err != nil {
		return err
	}
	digest := b.Digest()
	generation, err := n.Prepare(&fleetv1.Release{Revision: revision, Digest: digest[:]}, b)
	if err != nil {
		return err
	}
	n.Apply(generation)
	logger.Info("serving", "file", file, "listen", n.ListenAddress(), "digest", digest.Short())
	return nil
}

// maxDocument is one byte more than a document may have, so that the dialect's own limit is what people read of.
const maxDocument = 10<<20 + 1

// readDocument reads a document and gives how to read the files that it names, which are relative to it.
func readDocument(path string) ([]byte, config.Files, error) {
	document, err := readAtMost(path, maxDocument)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot read the configuration: %w", err)
	}
	folder := filepath.Dir(path)
	return document, func(name string) ([]byte, error) {
		if !filepath.IsAbs(name) {
			name = filepath.Join(folder, name)
		}
		return readAtMost(name, 1<<20)
	}, nil
}

func readAtMost(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit))
}

func describeProblems(file string, problems config.Problems) error {
	var lines []string
	for _, p := range problems {
		if !p.Warning {
			lines = append(lines, file+":"+p.String())
		}
	}
	return errors.New("the configuration has errors:\n" + strings.Join(lines, "\n"))
}
