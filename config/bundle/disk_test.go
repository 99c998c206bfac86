package bundle

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
)

// way is how a step of a write ends.
type way string

const (
	fails       way = "fails"
	failsLate   way = "takes effect and fails"
	stopsBefore way = "is preceded by the end of the process"
	stopsAfter  way = "is followed by the end of the process"
	// For a write alone.
	failsHalfway way = "writes half and fails"
	stopsHalfway way = "writes half and the process ends"
)

// stopped is what ends the process of a test: nothing that is done afterwards reaches the disk.
type stopped struct{}

// quickDisk is the system's without waiting for anything to be safe: what a test asks of that, it asks of a model.
var quickDisk = disk{
	create: func(directory, pattern string) (file, error) {
		f, err := systemDisk.create(directory, pattern)
		if err != nil {
			return nil, err
		}
		return quickFile{f}, nil
	},
	link: systemDisk.link, rename: systemDisk.rename, remove: systemDisk.remove, sync: func(string) error { return nil },
}

type quickFile struct{ file }

func (quickFile) Sync() error { return nil }

// faultyDisk is quickDisk, but for one step that ends badly.
type faultyDisk struct {
	steps []string // what was done so far
	at    int      // the step that ends badly
	how   way
	dead  bool
	done  func() // called after every step; nil: nobody asks
	model *model // told of all that takes effect; nil: nobody asks
}

// do is one step. half is what a write does first of the two halves of its effect; nil: the step has no halves.
func (f *faultyDisk) do(what string, half, effect func() error) error {
	if f.dead {
		return errors.New("the process has ended")
	}
	f.steps = append(f.steps, what)
	if len(f.steps)-1 != f.at {
		err := effect()
		if f.done != nil {
			f.done()
		}
		return err
	}
	switch f.how {
	case fails:
		return syscall.EIO
	case failsLate:
		effect()
		return syscall.EIO
	case failsHalfway:
		half()
		return syscall.ENOSPC
	case stopsHalfway:
		half()
	case stopsAfter:
		effect()
	}
	f.dead = true
	panic(stopped{})
}

func (f *faultyDisk) disk() disk {
	then := func(err error, tell func(*model)) error {
		if err == nil && f.model != nil {
			tell(f.model)
		}
		return err
	}
	return disk{
		create: func(directory, pattern string) (made file, err error) {
			err = f.do("create", nil, func() error {
				real, err := quickDisk.create(directory, pattern)
				if err == nil {
					made = &faultyFile{real, f}
				}
				return then(err, func(m *model) { m.create(real.Name()) })
			})
			if err != nil {
				return nil, err
			}
			return made, nil
		},
		link: func(from, to string) error {
			return f.do("link", nil, func() error {
				return then(quickDisk.link(from, to), func(m *model) { m.link(from, to) })
			})
		},
		rename: func(from, to string) error {
			return f.do("rename "+filepath.Base(to), nil, func() error {
				return then(quickDisk.rename(from, to), func(m *model) { m.link(from, to); m.remove(from) })
			})
		},
		remove: func(path string) error {
			return f.do("remove", nil, func() error {
				return then(quickDisk.remove(path), func(m *model) { m.remove(path) })
			})
		},
		sync: func(directory string) error {
			return f.do("sync the directory", nil, func() error {
				return then(quickDisk.sync(directory), (*model).sync)
			})
		},
	}
}

type faultyFile struct {
	file
	disk *faultyDisk
}

func (f *faultyFile) Write(data []byte) (n int, err error) {
	write := func(part []byte) func() error {
		return func() error {
			n, err = f.file.Write(part)
			if f.disk.model != nil {
				f.disk.model.write(f.Name(), part)
			}
			return err
		}
	}
	return n, f.disk.do("write", write(data[:len(data)/2]), write(data))
}

func (f *faultyFile) Sync() error {
	return f.disk.do("fsync", nil, func() error {
		if f.disk.model != nil {
			f.disk.model.fsync(f.Name())
		}
		return f.file.Sync()
	})
}

func (f *faultyFile) Close() error {
	return f.disk.do("close", nil, f.file.Close)
}

// past is what lies on the disk before a write, and how the write is done.
type past struct {
	name    string
	prepare func(t *testing.T, d *Directory, path string)
	old     uint64 // the revision that is loaded before; 0: none
	before  uint64 // the revision that is loaded where old is refused; 0: none
	stood   bool
}

const newRevision = 9

func pasts() []past {
	saved := func(revisions ...uint64) func(*testing.T, *Directory, string) {
		return func(t *testing.T, d *Directory, _ string) {
			for _, revision := range revisions {
				if err := save(d, &fleetv1.Release{Revision: revision}, sample(t, uint32(revision))); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	return []past{
		{"the first bundle", saved(), 0, 0, false},
		{"the second bundle, after a short trial", saved(1), 1, 0, false},
		{"after one that stood", saved(1, 2), 2, 1, true},
		{"after one that is still on trial", func(t *testing.T, d *Directory, path string) {
			saved(1, 2)(t, d, path)
			if err := d.SaveTrial(Trial{&fleetv1.Release{Revision: 2}, 1}); err != nil {
				t.Fatal(err)
			}
		}, 2, 1, false},
		{"over one that is damaged", func(t *testing.T, d *Directory, path string) {
			saved(1, 2)(t, d, path)
			flip(t, filepath.Join(path, currentFile))
		}, 1, 0, false},
		{"after a crash between the two renames", func(t *testing.T, d *Directory, path string) {
			saved(1, 2)(t, d, path)
			if err := errors.Join(os.Remove(filepath.Join(path, previousFile)), os.Link(filepath.Join(path, currentFile), filepath.Join(path, previousFile))); err != nil {
				t.Fatal(err)
			}
		}, 2, 2, true},
	}
}

func flip(t *testing.T, path string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// write is a swap as the node does it, and says how far it came.
func (p past) write(t *testing.T, d *Directory, marked func()) (err error) {
	defer func() {
		if r := recover(); r != nil && r != (any)(stopped{}) {
			panic(r)
		}
	}()
	staged, err := d.Stage(&fleetv1.Release{Revision: newRevision}, sample(t, newRevision), 1)
	if err != nil {
		return err
	}
	if err := staged.BeginTrial(); err != nil {
		staged.Discard()
		return err
	}
	marked()
	return staged.Commit(p.stood)
}

// open gives what the past left, on the disk f, which is not asked before.
func (p past) open(t *testing.T, f *faultyDisk) (*Directory, string) {
	t.Helper()
	path := t.TempDir()
	d, err := openDirectory(path, quickDisk)
	if err != nil {
		t.Fatal(err)
	}
	p.prepare(t, d, path)
	if d, err = openDirectory(path, f.disk()); err != nil {
		t.Fatal(err)
	}
	return d, path
}

// steps are those of a write that nothing happens to.
func (p past) steps(t *testing.T) []string {
	t.Helper()
	f := &faultyDisk{at: -1}
	d, path := p.open(t, f)
	if err := p.write(t, d, func() {}); err != nil {
		t.Fatal(err)
	}
	p.check(t, path, "without a fault", true, true)
	if len(f.steps) < 12 {
		t.Fatalf("only %d steps: %v", len(f.steps), f.steps)
	}
	return f.steps
}

// loaded gives the revision that a start finds; 0: none. A revision that is refused is passed over.
func loaded(d *Directory, refused ...uint64) (revision uint64, err error) {
	release, b, _, err := d.Load(func(release *fleetv1.Release, _ *Bundle) error {
		if slices.Contains(refused, release.GetRevision()) {
			return errors.New("refused")
		}
		return nil
	})
	if errors.Is(err, ErrEmpty) {
		return 0, nil
	}
	if err == nil && b.Len() == 0 {
		err = errors.New("the bundle is empty")
	}
	return release.GetRevision(), err
}

// check wants the old or the new bundle, whole, and the one before in reserve.
func (p past) check(t *testing.T, path, after string, marked, committed bool) {
	t.Helper()
	d, err := openDirectory(path, quickDisk)
	if err != nil {
		t.Fatal(err)
	}
	got, err := loaded(d)
	if err != nil || got != newRevision && (got != p.old || committed) {
		t.Errorf("%s: revision %d is loaded, %v", after, got, err)
	}
	if p.before != 0 {
		if got, err := loaded(d, newRevision); err != nil || got != p.old && got != p.before {
			t.Errorf("%s: behind the new one, revision %d is loaded, %v", after, got, err)
		}
	}
	mark, err := d.Trial()
	if err != nil || marked && mark.Release.GetRevision() != newRevision {
		t.Errorf("%s: the mark says %v, %v", after, mark, err)
	}
	if left, _ := filepath.Glob(filepath.Join(path, "*.tmp")); len(left) > 0 {
		t.Errorf("%s: left over: %v", after, left)
	}
	// And all goes on.
	if err := save(d, &fleetv1.Release{Revision: newRevision + 1}, sample(t, newRevision+1)); err != nil {
		t.Errorf("%s: the next one cannot be saved: %v", after, err)
	}
	if got, err := loaded(d); err != nil || got != newRevision+1 {
		t.Errorf("%s: then revision %d is loaded, %v", after, got, err)
	}
}

// TestEveryStepOfAWriteMayEndBadly has every call that changes the disk fail, or be the last one of the process, in turn.
func TestEveryStepOfAWriteMayEndBadly(t *testing.T) {
	for _, p := range pasts() {
		t.Run(p.name, func(t *testing.T) {
			for at, step := range p.steps(t) {
				ways := []way{fails, failsLate, stopsBefore, stopsAfter}
				if step == "write" {
					ways = append(ways, failsHalfway, stopsHalfway)
				}
				for _, how := range ways {
					f := &faultyDisk{at: at, how: how}
					d, path := p.open(t, f)
					marked := false
					err := p.write(t, d, func() { marked = true })
					after := fmt.Sprintf("step %d, %s, %s", at, step, how)
					p.check(t, path, after, marked, err == nil && !f.dead)
				}
			}
		})
	}
}

// TestAFaultThatPassesIsForgotten goes on with the directory that a step failed in, without a restart.
func TestAFaultThatPassesIsForgotten(t *testing.T) {
	for _, p := range pasts() {
		for at := range p.steps(t) {
			for _, how := range []way{fails, failsLate} {
				d, path := p.open(t, &faultyDisk{at: at, how: how})
				p.write(t, d, func() {})
				// What is current by now is not known, and so it is not known to have stood.
				again := p
				again.stood = false
				after := fmt.Sprintf("%s: step %d %s, then again", p.name, at, how)
				if err := again.write(t, d, func() {}); err != nil {
					t.Errorf("%s: %v", after, err)
				}
				p.check(t, path, after, true, true)
			}
		}
	}
}

// model is what a power cut leaves of a directory. Names are safe when the directory was synced, contents when the file was;
// of all else, anything may be there.
type model struct {
	names   map[string]*inode // safe
	pending []func(map[string]*inode)
}

type inode struct{ safe, written []byte }

// modelOf gives the model of a directory whose content is safe.
func modelOf(t *testing.T, path string) *model {
	t.Helper()
	m := &model{names: map[string]*inode{}}
	entries, err := os.ReadDir(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(path, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		m.names[e.Name()] = &inode{data, data}
	}
	return m
}

// seen is the directory as the process sees it.
func (m *model) seen() map[string]*inode {
	names := maps.Clone(m.names)
	for _, change := range m.pending {
		change(names)
	}
	return names
}

func (m *model) set(name string, to *inode) {
	m.pending = append(m.pending, func(names map[string]*inode) { names[filepath.Base(name)] = to })
}

func (m *model) create(name string)   { m.set(name, &inode{}) }
func (m *model) link(from, to string) { m.set(to, m.seen()[filepath.Base(from)]) }

func (m *model) remove(name string) {
	m.pending = append(m.pending, func(names map[string]*inode) { delete(names, filepath.Base(name)) })
}

func (m *model) write(name string, data []byte) {
	file := m.seen()[filepath.Base(name)]
	file.written = append(file.written, data...)
}

func (m *model) fsync(name string) {
	file := m.seen()[filepath.Base(name)]
	file.safe = slices.Clone(file.written)
}

func (m *model) sync() { m.names, m.pending = m.seen(), nil }

// cuts gives every content of the directory that a power cut may leave now: any of the changes that were not synced, and
// of contents that were not, nothing, half, or zeros.
func (m *model) cuts() []map[string][]byte {
	var out []map[string][]byte
	known := map[string]bool{}
	for chosen := range 1 << len(m.pending) {
		names := maps.Clone(m.names)
		for i, change := range m.pending {
			if chosen&(1<<i) != 0 {
				change(names)
			}
		}
		for _, loss := range []func([]byte) []byte{
			func([]byte) []byte { return nil },
			func(written []byte) []byte { return written[:len(written)/2] },
			func(written []byte) []byte { return make([]byte, len(written)) },
		} {
			content := map[string][]byte{}
			for name, file := range names {
				if content[name] = file.written; !bytes.Equal(file.safe, file.written) {
					content[name] = loss(file.written)
				}
			}
			if key := fmt.Sprint(content); !known[key] {
				known[key] = true
				out = append(out, content)
			}
		}
	}
	return out
}

// TestAPowerCutLeavesTheOldOrTheNew cuts the power after every step, with everything that was not synced kept, lost, or
// torn in every combination.
func TestAPowerCutLeavesTheOldOrTheNew(t *testing.T) {
	for _, p := range pasts() {
		t.Run(p.name, func(t *testing.T) {
			f := &faultyDisk{at: -1}
			d, path := p.open(t, f)
			f.model = modelOf(t, path)
			marked, cuts := false, 0
			cut := func(committed bool) {
				for _, content := range f.model.cuts() {
					cuts++
					left := t.TempDir()
					for name, data := range content {
						if err := os.WriteFile(filepath.Join(left, name), data, 0o600); err != nil {
							t.Fatal(err)
						}
					}
					p.check(t, left, fmt.Sprintf("cut %d, after step %d, %s", cuts, len(f.steps), f.steps[len(f.steps)-1]), marked, committed)
				}
			}
			f.done = func() { cut(false) }
			if err := p.write(t, d, func() { marked = true }); err != nil {
				t.Fatal(err)
			}
			cut(true)
			if cuts < 40 {
				t.Errorf("only %d cuts", cuts)
			}
		})
	}
}

// TestThePreviousBundleIsTheLastThatStood, however many come after it in quick succession.
func TestThePreviousBundleIsTheLastThatStood(t *testing.T) {
	d, err := openDirectory(t.TempDir(), quickDisk)
	if err != nil {
		t.Fatal(err)
	}
	for revision, stood := range []bool{false, true, false, false} {
		staged, err := d.Stage(&fleetv1.Release{Revision: uint64(revision + 1)}, sample(t, uint32(revision+1)), 1)
		if err != nil {
			t.Fatal(err)
		}
		if err := staged.Commit(stood); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := loaded(d); err != nil || got != 4 {
		t.Errorf("revision %d is loaded, %v", got, err)
	}
	if got, err := loaded(d, 4); err != nil || got != 1 {
		t.Errorf("behind it, revision %d is loaded, %v", got, err)
	}
}
