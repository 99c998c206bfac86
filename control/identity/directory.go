package identity

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/pyserve/pyserve/config/bundle"
)

// The files of an identity.
const (
	caFile      = "ca.crt"
	caKeyFile   = "ca.key"
	releaseFile = "release.key"
	gossipFile  = "gossip.key"
	clusterFile = "cluster-id"
	sealFile    = "seal.key"
)

// Limits of what is read.
const (
	maxKeyFile    = 64 << 10
	maxGossipKeys = 16
	sealKeyBytes  = 32
)

// keyDirectory is the directory "identity" in control's data directory. It comes into being by one rename, complete,
// so that a crash during the first start leaves nothing that looks like a damaged identity.
type keyDirectory struct {
	parent string
	logger *slog.Logger
}

func (d keyDirectory) path() string { return filepath.Join(d.parent, "identity") }

func (d keyDirectory) exists() (bool, error) {
	info, err := os.Stat(d.path())
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("look for the cluster's identity: %w", err)
	case !info.IsDir():
		return false, fmt.Errorf("%s is not a directory", d.path())
	}
	return true, nil
}

func (d keyDirectory) save(a *Authority) error {
	files, err := a.files()
	if err != nil {
		return fmt.Errorf("encode the cluster's identity: %w", err)
	}
	if err := os.MkdirAll(d.parent, 0o700); err != nil {
		return fmt.Errorf("make the data directory: %w", err)
	}
	if err := d.removeUnfinished(); err != nil {
		return err
	}
	temporary, err := os.MkdirTemp(d.parent, unfinished) // mode 0700
	if err != nil {
		return fmt.Errorf("make the identity directory: %w", err)
	}
	defer os.RemoveAll(temporary) // does nothing once it is renamed
	for name, data := range files {
		if err := WriteSecret(filepath.Join(temporary, name), data); err != nil {
			return err
		}
	}
	if err := os.Rename(temporary, d.path()); err != nil {
		return fmt.Errorf("put the identity directory in its place: %w", err)
	}
	return bundle.SyncDirectory(d.parent)
}

// unfinished is what the name of an identity looks like that a crash left half made.
const unfinished = ".identity-*.tmp"

func (d keyDirectory) removeUnfinished() error {
	left, err := filepath.Glob(filepath.Join(escapeGlob(d.parent), unfinished))
	if err != nil {
		return fmt.Errorf("look for an unfinished identity: %w", err)
	}
	for _, path := range left {
		if err := os.RemoveAll(path); err != nil {
			return fmt.Errorf("remove the unfinished identity: %w", err)
		}
	}
	return nil
}

func escapeGlob(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}

func (a *Authority) files() (map[string][]byte, error) {
	crt, key, err := encodeIssuers(a.issuers())
	if err != nil {
		return nil, err
	}
	release, err := x509.MarshalPKCS8PrivateKey(a.release)
	if err != nil {
		return nil, err
	}
	return map[string][]byte{
		caFile:      crt,
		caKeyFile:   key,
		releaseFile: encodePEM(privateKeyPEM, release),
		gossipFile:  encodeGossip(a.GossipKeys()),
		clusterFile: []byte(a.clusterID + "\n"),
		sealFile:    []byte(base64.StdEncoding.EncodeToString(a.seal) + "\n"),
	}, nil
}

// load fills the authority from the files; the first that is missing or damaged is named.
func (d keyDirectory) load(a *Authority) error {
	for _, file := range []struct {
		name string
		take func(*Authority, []byte) error
	}{
		{clusterFile, (*Authority).takeCluster},
		{caFile, (*Authority).takeCA},
		{caKeyFile, (*Authority).takeCAKey},
		{releaseFile, (*Authority).takeRelease},
		{gossipFile, (*Authority).takeGossip},
		{sealFile, (*Authority).takeSeal},
	} {
		path := filepath.Join(d.path(), file.name)
		data, err := d.read(path)
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("the cluster's identity is incomplete: %s is missing; restore it from a backup", path)
		}
		if err == nil {
			err = file.take(a, data)
		}
		if err != nil {
			return fmt.Errorf("the cluster's identity is damaged: %s: %w", path, err)
		}
	}
	return nil
}

// read gives a file's contents. A mode that lets others read it, as a restored backup may have, is put right.
func (d keyDirectory) read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		d.logger.Warn("a secret file could be read by others; its mode is 0600 now", "file", path, "mode", mode.String())
		if err := f.Chmod(0o600); err != nil {
			return nil, err
		}
	}
	data, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err == nil && len(data) > maxKeyFile {
		err = fmt.Errorf("it is longer than %d bytes", maxKeyFile)
	}
	return data, err
}

func (a *Authority) takeCluster(data []byte) error {
	id := strings.TrimSpace(string(data))
	if raw, err := hex.DecodeString(id); err != nil || len(raw) < 4 || len(raw) > 32 || id != strings.ToLower(id) {
		return errors.New("it holds no cluster id")
	}
	a.clusterID = id
	return nil
}

// takeCA takes the certificates; takeCAKey finds their keys.
func (a *Authority) takeCA(data []byte) error {
	blocks, err := decodePEMs(certificatePEM, data, maxIssuers)
	if err != nil {
		return err
	}
	var all []issuer
	for _, der := range blocks {
		certificate, err := parseAuthority(der, a.clusterID)
		if err != nil {
			return err
		}
		all = append(all, issuer{certificate: certificate})
	}
	a.use(all)
	return nil
}

// takeCAKey finds the key of every certificate. Others may be there too: a rotation that a crash ended left them.
func (a *Authority) takeCAKey(data []byte) error {
	blocks, err := decodePEMs(privateKeyPEM, data, 2*maxIssuers)
	if err != nil {
		return err
	}
	all := a.issuers()
	for _, der := range blocks {
		key, err := parseKey[*ecdsa.PrivateKey](der)
		if err != nil {
			return err
		}
		for i := range all {
			if key.Curve == elliptic.P256() && key.PublicKey.Equal(all[i].certificate.PublicKey) {
				all[i].key = key
			}
		}
	}
	for _, i := range all {
		if i.key == nil {
			return fmt.Errorf("it does not hold the key of %s", caFile)
		}
	}
	a.use(all)
	return nil
}

func (a *Authority) takeRelease(data []byte) (err error) {
	a.release, err = decodeKey[ed25519.PrivateKey](data)
	return err
}

func (a *Authority) takeGossip(data []byte) (err error) {
	a.gossip, err = parseGossip(data)
	return err
}

// parseGossip reads a key a line.
func parseGossip(data []byte) (keys [][]byte, err error) {
	for line := range strings.Lines(string(data)) {
		key, err := base64.StdEncoding.DecodeString(strings.TrimSpace(line))
		if err != nil || len(key) != 32 {
			return nil, fmt.Errorf("line %d is not a key of 32 bytes in base64", len(keys)+1)
		}
		keys = append(keys, key)
	}
	if n := len(keys); n == 0 || n > maxGossipKeys {
		return nil, fmt.Errorf("it holds %d keys, want 1 to %d", n, maxGossipKeys)
	}
	return keys, nil
}

func encodeGossip(keys [][]byte) []byte {
	var out bytes.Buffer
	for _, key := range keys {
		fmt.Fprintln(&out, base64.StdEncoding.EncodeToString(key))
	}
	return out.Bytes()
}

func (a *Authority) takeSeal(data []byte) error {
	key, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(data)))
	if err != nil || len(key) != sealKeyBytes {
		return fmt.Errorf("it is not a key of %d bytes in base64", sealKeyBytes)
	}
	a.seal = key
	return nil
}

// The types of PEM blocks.
const (
	certificatePEM = "CERTIFICATE"
	privateKeyPEM  = "PRIVATE KEY"
)

func encodePEM(blockType string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: blockType, Bytes: der})
}

// decodePEM gives the one block that data holds.
func decodePEM(blockType string, data []byte) ([]byte, error) {
	block, rest := pem.Decode(data)
	if block == nil || block.Type != blockType {
		return nil, fmt.Errorf("it holds no PEM block %q", blockType)
	}
	if len(bytes.TrimSpace(rest)) > 0 {
		return nil, fmt.Errorf("it holds more than one PEM block %q", blockType)
	}
	return block.Bytes, nil
}

// decodePEMs gives the blocks that data holds, 1 to most.
func decodePEMs(blockType string, data []byte, most int) (blocks [][]byte, err error) {
	rest := bytes.TrimSpace(data)
	for n := 0; n == 0 || len(rest) > 0; n++ {
		block, after := pem.Decode(rest)
		if block == nil || block.Type != blockType || n == most {
			return nil, fmt.Errorf("it does not hold 1 to %d PEM blocks %q and nothing else", most, blockType)
		}
		blocks, rest = append(blocks, block.Bytes), bytes.TrimSpace(after)
	}
	return blocks, nil
}

func decodeKey[K any](data []byte) (key K, err error) {
	der, err := decodePEM(privateKeyPEM, data)
	if err != nil {
		return key, err
	}
	return parseKey[K](der)
}

func parseKey[K any](der []byte) (key K, err error) {
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return key, errors.New("it holds no private key (PKCS #8)") // the parser's error might quote what it read
	}
	key, ok := parsed.(K)
	if !ok {
		return key, fmt.Errorf("it holds a key of another type, %T", parsed)
	}
	return key, nil
}
