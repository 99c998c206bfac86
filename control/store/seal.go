package store

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// SealKeyBytes is how long the key is that the store is sealed with.
const SealKeyBytes = 32

// sealVersion is the format that sealed commands and snapshots begin with, and the only one that is read.
const sealVersion = 1

const (
	keyIDBytes    = 8
	nonceBytes    = 12
	tagBytes      = 16
	saltBytes     = 32
	sealedHead    = 1 + keyIDBytes // version, key id
	commandHead   = sealedHead + nonceBytes
	snapshotHead  = sealedHead + saltBytes
	snapshotChunk = 64 << 10 // of what is sealed; the tag comes on top
)

// sealer keeps what the store writes from whoever reads the disk without the key. AES-256-GCM, so that what was changed
// is noticed as well. Its methods may be called concurrently.
//
// Commands have random nonces: one key is good for 2^32 of them, which is a hundred a second for a year. A snapshot has
// a key of its own, derived from a random salt, and its chunks are counted, the last one marked, so that none can be
// left out, moved or cut off.
type sealer struct {
	key      []byte
	id       []byte // names the key and tells nothing about it
	commands cipher.AEAD
}

func newSealer(key []byte) (*sealer, error) {
	if len(key) != SealKeyBytes {
		return nil, fmt.Errorf("the key that the store is sealed with has %d bytes, want %d", len(key), SealKeyBytes)
	}
	k := &sealer{key: bytes.Clone(key)}
	id, err := k.derive(nil, "pyserve store: key id")
	if err != nil {
		return nil, err
	}
	k.id = id[:keyIDBytes]
	k.commands, err = k.aead(nil, "pyserve store: commands")
	return k, err
}

func (k *sealer) derive(salt []byte, purpose string) ([]byte, error) {
	derived, err := hkdf.Key(sha256.New, k.key, salt, purpose, SealKeyBytes)
	if err != nil {
		return nil, fmt.Errorf("derive a key: %w", err)
	}
	return derived, nil
}

func (k *sealer) aead(salt []byte, purpose string) (cipher.AEAD, error) {
	key, err := k.derive(salt, purpose)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("make a cipher: %w", err)
	}
	return cipher.NewGCM(block)
}

// head begins what is sealed.
func (k *sealer) head(room int) []byte {
	return append(append(make([]byte, 0, room), sealVersion), k.id...)
}

// checkHead says what is wrong with the beginning of something sealed. A lost key is the likeliest trouble of somebody
// who restores half a backup, so it has a sentence of its own.
func (k *sealer) checkHead(head []byte) error {
	switch {
	case head[0] > sealVersion:
		return fmt.Errorf("%w: sealed in format %d, this program knows up to %d", errTooNew, head[0], sealVersion)
	case head[0] != sealVersion:
		return errors.New("it is damaged: it is not sealed")
	case !bytes.Equal(head[1:sealedHead], k.id):
		return errors.New("it was sealed with another key than the one in identity/seal.key, or is damaged; restore both from one backup")
	}
	return nil
}

// errDamaged tells neither how far a forger came nor what the plain text was.
var errDamaged = errors.New("it is damaged: its seal does not fit")

// seal takes the plain text that lies behind commandHead bytes of room and seals it in place.
func (k *sealer) seal(room []byte) []byte {
	copy(room, k.head(sealedHead))
	nonce := room[sealedHead:commandHead]
	rand.Read(nonce) // never fails: crypto/rand ends the process instead
	return k.commands.Seal(room[:commandHead], nonce, room[commandHead:], room[:sealedHead])
}

// open gives the plain text of what seal made; data stays as it is.
func (k *sealer) open(data []byte) ([]byte, error) {
	if len(data) < commandHead+tagBytes {
		return nil, fmt.Errorf("it is damaged: %d bytes are too few", len(data))
	}
	if err := k.checkHead(data); err != nil {
		return nil, err
	}
	plain, err := k.commands.Open(nil, data[sealedHead:commandHead], data[commandHead:], data[:sealedHead])
	if err != nil {
		return nil, errDamaged
	}
	return plain, nil
}

// chunkNonce is the nonce of a snapshot's chunk.
func chunkNonce(counter uint64, last bool) []byte {
	nonce := make([]byte, nonceBytes)
	binary.BigEndian.PutUint64(nonce, counter)
	if last {
		nonce[nonceBytes-1] = 1
	}
	return nonce
}

// sealWriter seals a stream. Only Close writes the last chunk.
type sealWriter struct {
	to      io.Writer
	aead    cipher.AEAD
	counter uint64
	plain   []byte
	sealed  []byte
	err     error
}

func (k *sealer) newWriter(to io.Writer) (*sealWriter, error) {
	salt := make([]byte, saltBytes)
	rand.Read(salt)
	aead, err := k.aead(salt, "pyserve store: snapshot")
	if err != nil {
		return nil, err
	}
	if _, err := to.Write(append(k.head(snapshotHead), salt...)); err != nil {
		return nil, err
	}
	return &sealWriter{
		to: to, aead: aead,
		plain: make([]byte, 0, snapshotChunk), sealed: make([]byte, 0, snapshotChunk+tagBytes),
	}, nil
}

// Write implements io.Writer. A full chunk waits until it is known not to be the last.
func (w *sealWriter) Write(p []byte) (n int, err error) {
	for len(p) > 0 && w.err == nil {
		if len(w.plain) == snapshotChunk {
			w.flush(false)
		}
		took := copy(w.plain[len(w.plain):snapshotChunk], p)
		w.plain = w.plain[:len(w.plain)+took]
		p, n = p[took:], n+took
	}
	return n, w.err
}

// Close writes what is left; the writer below stays open.
func (w *sealWriter) Close() error {
	if w.err == nil {
		w.flush(true)
	}
	return w.err
}

func (w *sealWriter) flush(last bool) {
	w.sealed = w.aead.Seal(w.sealed[:0], chunkNonce(w.counter, last), w.plain, nil)
	_, w.err = w.to.Write(w.sealed)
	w.counter++
	w.plain = w.plain[:0]
}

// sealReader opens what a sealWriter wrote. It ends with [io.EOF] only behind the chunk that was sealed as the last.
type sealReader struct {
	from    io.Reader
	aead    cipher.AEAD
	counter uint64
	sealed  []byte // a chunk, and the first byte of the next, which tells that there is one
	held    int    // bytes in sealed
	opened  []byte
	plain   []byte // of opened, what was not yet handed out
	last    bool
}

func (k *sealer) newReader(from io.Reader) (*sealReader, error) {
	head := make([]byte, snapshotHead)
	if _, err := io.ReadFull(from, head); err != nil {
		return nil, fmt.Errorf("it is cut short: %w", err)
	}
	if err := k.checkHead(head); err != nil {
		return nil, err
	}
	aead, err := k.aead(head[sealedHead:], "pyserve store: snapshot")
	return &sealReader{from: from, aead: aead, sealed: make([]byte, snapshotChunk+tagBytes+1)}, err
}

// Read implements io.Reader.
func (r *sealReader) Read(p []byte) (int, error) {
	for len(r.plain) == 0 {
		if r.last {
			return 0, io.EOF
		}
		if err := r.chunk(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.plain)
	r.plain = r.plain[n:]
	return n, nil
}

func (r *sealReader) chunk() error {
	n, err := io.ReadFull(r.from, r.sealed[r.held:])
	r.held += n
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		r.last = true
	case err != nil:
		return fmt.Errorf("read it: %w", err)
	}
	length := min(r.held, snapshotChunk+tagBytes)
	r.opened, err = r.aead.Open(r.opened[:0], chunkNonce(r.counter, r.last), r.sealed[:length], nil)
	if err != nil {
		return errDamaged
	}
	r.plain = r.opened
	r.counter++
	r.held = copy(r.sealed, r.sealed[length:r.held])
	return nil
}
