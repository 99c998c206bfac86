package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pyserve/pyserve/config/bundle"
	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

// backupPart is how much of a backup one message carries.
const backupPart = 1 << 20

func newBackupCommand(s *settings) *cobra.Command {
	return &cobra.Command{
		Use:   "backup FILE",
		Short: "Write everything that control stores to a file",
		Long: `Write everything that control stores to a file, mode 0600: every revision with its document and certificates, and the
nodes that are registered. It is sealed with the cluster's key, identity/seal.key in the data directory of every control:
keep a copy of that directory too, and apart. Without it the backup cannot be read.`,
		Example: `  pyservectl backup pyserve-$(date +%F).backup`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.withAccess(cmd, func(ctx context.Context, c operatorv1.AccessClient) error {
				size, err := fetchBackup(ctx, c, args[0])
				if err != nil {
					return err
				}
				if s.structured() {
					return s.print(cmd.OutOrStdout(), map[string]any{"file": args[0], "bytes": size})
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "wrote %s, %d bytes; it needs identity/seal.key of a control to be restored\n", args[0], size)
				return err
			})
		},
	}
}

// fetchBackup puts the backup into the file at path, whole or not at all.
func fetchBackup(ctx context.Context, c operatorv1.AccessClient, path string) (size int64, err error) {
	stream, err := c.Backup(ctx, &operatorv1.BackupRequest{})
	if err != nil {
		return 0, plain(err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*.tmp") // mode 0600
	if err != nil {
		return 0, fmt.Errorf("write the backup: %w", err)
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return 0, plain(err)
		}
		if _, err := f.Write(m.GetData()); err != nil {
			return 0, fmt.Errorf("write the backup: %w", err)
		}
		size += int64(len(m.GetData()))
	}
	if size == 0 {
		return 0, errors.New("control sent an empty backup")
	}
	if err := errors.Join(f.Sync(), f.Close(), os.Rename(f.Name(), path), bundle.SyncDirectory(filepath.Dir(path))); err != nil {
		return 0, fmt.Errorf("write the backup: %w", err)
	}
	return size, nil
}

func newRestoreCommand(s *settings) *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "restore FILE",
		Short: "Put a backup in the place of what control stores",
		Long: `Put a backup in the place of what control stores. It says what it will do, and asks; --yes answers.

Revisions and nodes become those of the backup, as a new history that every node follows, whatever it serves. Revisions
that came after the backup are gone. Tokens, the audit trail and the set of controls stay as they are. A damaged file,
one of another cluster and one of a newer version are refused, and nothing is changed.`,
		Example: `  pyservectl restore pyserve-2026-01-31.backup
  pyservectl restore --yes pyserve-2026-01-31.backup`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, clock := s.stopwatch(cmd.Context())
			defer clock.end()
			return s.withAccessUntil(ctx, cmd, func(c operatorv1.AccessClient) error {
				r := restoring{settings: s, clock: clock, result: cmd.OutOrStdout(), tell: cmd.OutOrStdout()}
				if s.structured() {
					r.tell = cmd.ErrOrStderr()
				}
				if !yes {
					r.ask = func() (bool, error) { return confirmed(cmd.InOrStdin(), r.tell) }
				}
				return r.restore(ctx, c, args[0])
			})
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return cmd
}

// stopwatch ends a context when control has taken longer than --timeout. It can be stopped while somebody else is waited
// for. It is not safe for concurrent use.
type stopwatch struct {
	limit time.Duration
	timer *time.Timer
	end   func()
}

// stopwatch begins to count at once.
func (s *settings) stopwatch(parent context.Context) (context.Context, *stopwatch) {
	ctx, cancel := context.WithCancelCause(parent)
	late := fmt.Errorf("control did not answer within %s (--timeout)", s.timeout)
	timer := time.AfterFunc(s.timeout, func() { cancel(late) })
	return ctx, &stopwatch{s.timeout, timer, func() {
		timer.Stop()
		cancel(nil)
	}}
}

func (w *stopwatch) stop() { w.timer.Stop() }

// restart counts from the beginning.
func (w *stopwatch) restart() { w.timer.Reset(w.limit) }

// restoring is one restore, as its caller sees it.
type restoring struct {
	*settings
	clock *stopwatch
	// ask has somebody confirm it, however long that takes; nil: it is confirmed.
	ask func() (bool, error)
	// result is where programs read, tell where people do.
	result, tell io.Writer
}

func (r *restoring) restore(ctx context.Context, c operatorv1.AccessClient, path string) error {
	stream, err := c.Restore(ctx)
	if err != nil {
		return ended(ctx, err)
	}
	if err := sendBackup(stream, path); err != nil {
		return ended(ctx, err)
	}
	answer, err := stream.Recv()
	if err != nil {
		return ended(ctx, err)
	}
	printPlan(r.tell, answer.GetPlan())
	if sure, err := r.confirmed(); err != nil || !sure {
		return errors.Join(err, stream.CloseSend(), errNotConfirmed)
	}
	confirmation := &operatorv1.RestoreRequest{Message: &operatorv1.RestoreRequest_Confirmation{Confirmation: &operatorv1.RestoreConfirmation{}}}
	if err := stream.Send(confirmation); err != nil && !errors.Is(err, io.EOF) {
		return ended(ctx, err)
	}
	if answer, err = stream.Recv(); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("%w; it may be restored all the same: pyservectl audit tells", ended(ctx, err))
		}
		return plain(err)
	}
	return r.printResult(answer.GetResult())
}

// confirmed stops the clock while somebody is asked: --timeout is control's time.
func (r *restoring) confirmed() (bool, error) {
	if r.ask == nil {
		return true, nil
	}
	r.clock.stop()
	defer r.clock.restart()
	return r.ask()
}

func (r *restoring) printResult(m *operatorv1.RestoreResult) error {
	if r.structured() {
		return r.print(r.result, map[string]any{"revision": m.GetRevision(), "digest": m.GetDigest(), "epoch": m.GetEpoch()})
	}
	_, err := fmt.Fprintf(r.tell, "restored: revision %d (%s) is active, epoch %d; nodes follow: pyservectl status -w\n", m.GetRevision(), short(m.GetDigest()), m.GetEpoch())
	return err
}

// ended says why a call ended: where its context did, gRPC knows only that.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return plain(err)
}

var errNotConfirmed = errors.New("not restored: nothing was changed")

// sendBackup sends the file, of which the last part is marked.
func sendBackup(stream operatorv1.Access_RestoreClient, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("read the backup: %w", err)
	}
	defer f.Close()
	r := bufio.NewReaderSize(f, backupPart)
	buffer := make([]byte, backupPart)
	for last := false; !last; {
		n, err := io.ReadFull(r, buffer)
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return fmt.Errorf("read the backup: %w", err)
		}
		_, end := r.Peek(1)
		last = errors.Is(end, io.EOF)
		part := &operatorv1.RestorePart{Data: buffer[:n], Last: last}
		err = stream.Send(&operatorv1.RestoreRequest{Message: &operatorv1.RestoreRequest_Part{Part: part}})
		if errors.Is(err, io.EOF) {
			return nil // control has ended the call; Recv says why
		}
		if err != nil {
			return plain(err)
		}
	}
	return nil
}

func printPlan(to io.Writer, p *operatorv1.RestorePlan) {
	fmt.Fprintf(to, "the backup of %s holds %s\n", p.GetCreated().AsTime().Format(time.RFC3339), revisionText(p.GetRevision(), p.GetDigest()))
	fmt.Fprintf(to, "it takes the place of %s\n", revisionText(p.GetActiveRevision(), p.GetActiveDigest()))
	if n := int(p.GetReturningCount()); n > 0 {
		names := strings.Join(p.GetReturning(), ", ")
		if more := n - len(p.GetReturning()); more > 0 {
			names += fmt.Sprintf(" and %d more", more)
		}
		fmt.Fprintf(to, "nodes that are registered again, though they were revoked since or are not known here: %s\n", names)
	}
}

func revisionText(revision uint64, digest string) string {
	if revision == 0 {
		return "no configuration"
	}
	return fmt.Sprintf("revision %d (%s)", revision, short(digest))
}

// confirmed asks whoever sits at the terminal; elsewhere --yes is needed.
func confirmed(in io.Reader, out io.Writer) (bool, error) {
	f, ok := in.(*os.File)
	if !ok || !isTerminal(f) {
		return false, errors.New("--yes is needed where nobody can be asked")
	}
	fmt.Fprint(out, "restore it? Type yes: ")
	line, err := bufio.NewReader(in).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	return strings.TrimSpace(line) == "yes", nil
}
