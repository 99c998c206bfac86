package agent

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/pyserve/pyserve/config/bundle"
)

// releaseKeyFile lies beside the identity, which it is a part of: the key that bundles are verified by. It is no secret,
// and who could put another in its place could put another identity in its place as well.
const releaseKeyFile = "release-key.pem"

const (
	releaseKeyPEM      = "PUBLIC KEY"
	maxReleaseKeyBytes = 4 << 10
)

// Witness gives as much of an identity as verifies the bundles in the data directory, for a node whose identity cannot be
// read. It goes with [Agent.Outlast], and with nothing that speaks to control.
func Witness(dataDir, name string) (*Identity, error) {
	key, err := loadReleaseKey(dataDir)
	if err != nil {
		return nil, err
	}
	return &Identity{Name: name, ReleaseKey: key}, nil
}

func loadReleaseKey(dataDir string) (ed25519.PublicKey, error) {
	path := filepath.Join(dataDir, releaseKeyFile)
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read the key that bundles are verified by: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxReleaseKeyBytes))
	if err != nil {
		return nil, fmt.Errorf("read the key that bundles are verified by: %w", err)
	}
	key, err := parseReleaseKey(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return key, nil
}

func parseReleaseKey(data []byte) (ed25519.PublicKey, error) {
	block, rest := pem.Decode(data)
	if block == nil || block.Type != releaseKeyPEM || len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("it is not one public key")
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, errors.New("the public key in it cannot be read")
	}
	release, ok := key.(ed25519.PublicKey)
	if !ok {
		return nil, errors.New("the public key in it is of another kind")
	}
	return release, nil
}

// keepReleaseKey writes the key that bundles are verified by, where it is not there yet.
func keepReleaseKey(dataDir string, key ed25519.PublicKey) error {
	if known, err := loadReleaseKey(dataDir); err == nil && known.Equal(key) {
		return nil
	}
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return fmt.Errorf("encode the key that bundles are verified by: %w", err)
	}
	data := pem.EncodeToMemory(&pem.Block{Type: releaseKeyPEM, Bytes: der})
	if err := writeWhole(dataDir, releaseKeyFile, data); err != nil {
		return fmt.Errorf("write the key that bundles are verified by: %w", err)
	}
	return nil
}

// writeWhole puts data into a file of the data directory, mode 0600, whole or not at all, and for good.
func writeWhole(dataDir, name string, data []byte) error {
	f, err := os.CreateTemp(dataDir, name+"-*.tmp") // mode 0600
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), filepath.Join(dataDir, name))
	}
	if err != nil {
		os.Remove(f.Name())
		return err
	}
	return bundle.SyncDirectory(dataDir)
}

// reminder is between two lines in the log of a node that speaks to no control.
const reminder = 10 * time.Minute

// Outlast takes the place of Run for a node with no more than a [Witness]: what Boot let it serve is served on, until ctx
// ends. No control is spoken to and nothing is gossiped; the log says why, again and again.
func (a *Agent) Outlast(ctx context.Context, why error) {
	var watching sync.WaitGroup
	watching.Go(func() { a.memory.trial.watch(ctx) })
	defer watching.Wait()
	again := time.NewTicker(reminder)
	defer again.Stop()
	for {
		a.options.Logger.Error("this node serves its last known good bundle and cannot speak to control: it takes no change until it is enrolled anew", "reason", why)
		select {
		case <-again.C:
		case <-ctx.Done():
			return
		}
	}
}
