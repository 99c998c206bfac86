package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"github.com/pyserve/pyserve/config"
	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

// document is a configuration file with the files that it names.
type document struct {
	name  string // as problems name it
	data  []byte
	files map[string][]byte
	// unread says why a named file could not be read.
	unread map[string]error
}

// What is read at most: one byte more than the dialect allows, so that its own limit is what people read of, and more
// than any certificate has.
const (
	maxDocument = 10<<20 + 1
	maxFile     = 1 << 20
)

// readDocument reads a configuration, "-" from standard input, and the files that it names, which are relative to it.
func readDocument(path string, stdin io.Reader) (*document, error) {
	d := &document{name: path, files: map[string][]byte{}, unread: map[string]error{}}
	folder := filepath.Dir(path)
	var err error
	if path == "-" {
		d.name, folder = "standard input", "."
		d.data, err = io.ReadAll(io.LimitReader(stdin, maxDocument))
	} else {
		d.data, err = readFile(path, maxDocument)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the configuration: %w", err)
	}
	for _, name := range config.NamedFiles(d.data) {
		at := name
		if !filepath.IsAbs(at) {
			at = filepath.Join(folder, name)
		}
		data, err := readFile(at, maxFile)
		if err != nil {
			d.unread[name] = err
			continue
		}
		d.files[name] = data
	}
	return d, nil
}

func readFile(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit))
}

func (d *document) file(name string) ([]byte, error) {
	if err := d.unread[name]; err != nil {
		return nil, err
	}
	data, ok := d.files[name]
	if !ok {
		return nil, os.ErrNotExist
	}
	return data, nil
}

// problem is one line of what is wrong, for people and programs.
type problem struct {
	Line    int    `json:"line"`
	Path    string `json:"path"`
	Message string `json:"message"`
	Warning bool   `json:"warning"`
}

// check parses the document offline.
func (d *document) check() (*config.Resources, []problem) {
	resources, found := config.Parse(d.data, d.file)
	problems := make([]problem, 0, len(found))
	for _, p := range found {
		problems = append(problems, problem{p.Line, p.Path, p.Message, p.Warning})
	}
	return resources, problems
}

// parts gives the document as it is sent: its files first, so that nothing is parsed before all is there.
func (d *document) parts() []*operatorv1.FilePart {
	const partBytes = 1 << 20
	var out []*operatorv1.FilePart
	for name, data := range d.files {
		for part := range slices.Chunk(data, partBytes) {
			out = append(out, &operatorv1.FilePart{Name: name, Data: part})
		}
	}
	for part := range slices.Chunk(d.data, partBytes) {
		out = append(out, &operatorv1.FilePart{Data: part})
	}
	return out
}

// printProblems prints FILE:LINE: path: message, warnings marked.
func printProblems(to io.Writer, name string, problems []problem) {
	for _, p := range problems {
		message := config.Problem{Line: p.Line, Path: p.Path, Message: p.Message, Warning: p.Warning}.String()
		fmt.Fprintf(to, "%s:%s\n", name, message)
	}
}

func newValidateCommand(s *settings) *cobra.Command {
	return &cobra.Command{
		Use:   "validate FILE",
		Short: "Check a configuration, offline",
		Long: `Check a configuration without asking any control: every problem at once, as FILE:LINE: path: what is wrong and what
to write. FILE can be - for standard input. Exit code 1 says that there are errors; warnings are none.`,
		Example: `  pyservectl validate config.yaml`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := readDocument(args[0], cmd.InOrStdin())
			if err != nil {
				return err
			}
			resources, problems := d.check()
			out := cmd.OutOrStdout()
			if s.structured() {
				err = s.print(out, map[string]any{"valid": resources != nil, "problems": problems})
			} else {
				printProblems(out, d.name, problems)
				if resources != nil {
					fmt.Fprintf(out, "%s is valid: %s\n", d.name, summary(resources))
				}
			}
			if err == nil && resources == nil {
				return errNo
			}
			return err
		},
	}
}

func summary(r *config.Resources) string {
	backends := 0
	for _, pool := range r.Pools {
		backends += len(pool.GetBackends())
	}
	return fmt.Sprintf("%s, %s", count(len(r.Routes), "route"), count(backends, "backend"))
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// checked reads a document and checks it offline, so that a file with errors never travels. Of files that are not there
// control is asked whether it holds them.
func (s *settings) checked(cmd *cobra.Command, path string) (*document, error) {
	d, err := readDocument(path, cmd.InOrStdin())
	if err != nil {
		return nil, err
	}
	resources, problems := d.check()
	if missing := d.missing(); resources == nil && len(missing) > 0 {
		err := s.connected(cmd, func(ctx context.Context, c *client) error {
			m, err := c.FindFiles(ctx, &operatorv1.FindFilesRequest{Names: missing})
			for _, name := range m.GetNames() {
				d.unread[name] = config.ErrHeld
			}
			return plain(err)
		})
		if err != nil {
			fmt.Fprintln(cmd.ErrOrStderr(), "warning: control cannot be asked whether it holds the files that are missing:", err)
		}
		resources, problems = d.check()
	}
	if resources == nil {
		printProblems(cmd.ErrOrStderr(), d.name, problems)
		return nil, errNo
	}
	return d, nil
}

// missing names the files that the document names and that are not there.
func (d *document) missing() []string {
	var names []string
	for name, err := range d.unread {
		if errors.Is(err, fs.ErrNotExist) {
			names = append(names, name)
		}
	}
	return names
}

func newDiffCommand(s *settings) *cobra.Command {
	revision := uint64(0)
	cmd := &cobra.Command{
		Use:   "diff FILE",
		Short: "Compare a configuration with what runs",
		Long: `Compare a configuration with what runs, by meaning: which routes would be added, removed or changed, and how.
Exit code 0 says that nothing would change, 1 that something would.`,
		Example: `  pyservectl diff config.yaml
  pyservectl diff config.yaml --revision 7
  pyservectl get config --revision 9 | pyservectl diff - --revision 7`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := s.checked(cmd, args[0])
			if err != nil {
				return err
			}
			return s.diff(cmd, d, revision)
		},
	}
	cmd.Flags().Uint64Var(&revision, "revision", 0, "compare with this revision; 0: with what runs")
	return cmd
}

func (s *settings) diff(cmd *cobra.Command, d *document, revision uint64) error {
	ctx, cancel := s.deadline(cmd.Context())
	defer cancel()
	c, err := s.connect(ctx, cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	defer c.close()
	stream, err := c.Diff(ctx)
	if err != nil {
		return plain(err)
	}
	for _, part := range d.parts() {
		if err := stream.Send(&operatorv1.DiffRequest{Part: part, Revision: revision}); err != nil && !errors.Is(err, io.EOF) {
			return plain(err)
		}
	}
	response, err := stream.CloseAndRecv()
	if err != nil {
		return plain(err)
	}
	problems := received(response.GetProblems())
	changes := make([]change, 0, len(response.GetChanges()))
	for _, m := range response.GetChanges() {
		changes = append(changes, changeOf(m))
	}
	out := cmd.OutOrStdout()
	if s.structured() {
		err = s.print(out, map[string]any{"revision": response.GetRevision(), "problems": problems, "changes": changes})
	} else {
		printProblems(cmd.ErrOrStderr(), d.name, problems)
		list := changeList{out: out, paint: newPainter(out), all: s.output == "wide"}
		for _, change := range changes {
			list.add(change)
		}
		list.end()
		if len(changes) == 0 {
			fmt.Fprintf(out, "no difference from revision %d\n", response.GetRevision())
		}
	}
	if err == nil && (len(changes) > 0 || hasErrors(problems)) {
		return errNo
	}
	return err
}

func received(ms []*operatorv1.Problem) []problem {
	out := make([]problem, 0, len(ms))
	for _, m := range ms {
		out = append(out, problem{int(m.GetLine()), m.GetPath(), m.GetMessage(), m.GetWarning()})
	}
	return out
}

func hasErrors(problems []problem) bool {
	return slices.ContainsFunc(problems, func(p problem) bool { return !p.Warning })
}
