package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/pyserve/pyserve/control/audit"
	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

func newAuditCommand(s *settings) *cobra.Command {
	limit := 0
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Who changed what, and whether that record is whole",
		Long: `Who changed what, newest last. Each entry carries the hash of the one before; the whole chain is verified, whatever --limit
shows of it, and exit code 1 says that an entry was changed, left out or put in, and which.

The last line gives the newest entry's number and hash. Whoever notes them elsewhere can tell later that nothing up to
there was written anew.`,
		Example: `  pyservectl audit --limit 20
  pyservectl audit -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if limit < 0 {
				return fmt.Errorf("--limit is 0 or more, not %d", limit)
			}
			return s.withAccess(cmd, func(ctx context.Context, c operatorv1.AccessClient) error {
				anchor, entries, err := auditOf(ctx, c)
				if err != nil {
					return err
				}
				return s.printAudit(cmd, anchor, entries, limit)
			})
		},
	}
	cmd.Flags().IntVar(&limit, "limit", 0, "how many of the newest entries; 0: all")
	return cmd
}

// auditOf gives the whole trail.
func auditOf(ctx context.Context, c operatorv1.AccessClient) (anchor audit.Anchor, entries []audit.Entry, err error) {
	stream, err := c.ListAudit(ctx, &operatorv1.ListAuditRequest{})
	var malformed error
	first := true
	err = each(stream, err, func(m *operatorv1.ListAuditResponse) {
		if first {
			anchor.Sequence = m.GetAnchorSequence()
			malformed = errors.Join(malformed, takeHash(&anchor.Hash, m.GetAnchorHash()))
			first = false
		}
		for _, row := range m.GetEntries() {
			e := audit.Entry{
				Sequence: row.GetSequence(), Time: row.GetTime().AsTime(), Actor: row.GetActor(), Role: row.GetRole(),
				Address: row.GetAddress(), Method: row.GetMethod(), What: row.GetWhat(), Outcome: row.GetOutcome(),
			}
			malformed = errors.Join(malformed, takeHash(&e.Previous, row.GetPrevious()), takeHash(&e.Hash, row.GetHash()))
			entries = append(entries, e)
		}
	})
	if err == nil {
		err = malformed
	}
	return anchor, entries, err
}

func takeHash(to *[32]byte, raw []byte) error {
	if len(raw) != len(to) {
		return fmt.Errorf("control sent a hash of %d bytes", len(raw))
	}
	copy(to[:], raw)
	return nil
}

// auditOutput is the stable form for programs.
type auditOutput struct {
	Verified bool               `json:"verified"`
	BrokenAt uint64             `json:"broken_at,omitempty"`
	Reason   string             `json:"reason,omitempty"`
	First    uint64             `json:"first"`
	Last     uint64             `json:"last"`
	Hash     string             `json:"hash"`
	Entries  []auditEntryOutput `json:"entries"`
}

type auditEntryOutput struct {
	Sequence uint64 `json:"sequence"`
	Time     string `json:"time"`
	Actor    string `json:"actor"`
	Role     string `json:"role"`
	Address  string `json:"address"`
	Method   string `json:"method"`
	What     string `json:"what"`
	Outcome  string `json:"outcome"`
	Previous string `json:"previous"`
	Hash     string `json:"hash"`
}

// printAudit prints the newest entries and whether all of them are a whole chain.
func (s *settings) printAudit(cmd *cobra.Command, anchor audit.Anchor, entries []audit.Entry, limit int) error {
	broken := audit.Verify(anchor, entries)
	out := auditOutput{Verified: broken == nil, First: anchor.Sequence + 1, Last: anchor.Sequence, Hash: hex.EncodeToString(anchor.Hash[:]), Entries: []auditEntryOutput{}}
	if n := len(entries); n > 0 {
		out.First, out.Last, out.Hash = entries[0].Sequence, entries[n-1].Sequence, hex.EncodeToString(entries[n-1].Hash[:])
	}
	var at *audit.BrokenError
	if errors.As(broken, &at) {
		out.BrokenAt, out.Reason = at.Sequence, at.Reason
	}
	shown := entries
	if limit > 0 {
		shown = entries[max(0, len(entries)-limit):]
	}
	for _, e := range shown {
		out.Entries = append(out.Entries, auditEntryOutput{
			e.Sequence, e.Time.Format(time.RFC3339), e.Actor, e.Role, e.Address, e.Method, e.What, e.Outcome,
			hex.EncodeToString(e.Previous[:]), hex.EncodeToString(e.Hash[:]),
		})
	}
	if err := s.printAuditOutput(cmd, out); err != nil {
		return err
	}
	if broken != nil {
		fmt.Fprintln(cmd.ErrOrStderr(), broken)
		return errNo
	}
	return nil
}

func (s *settings) printAuditOutput(cmd *cobra.Command, a auditOutput) error {
	out := cmd.OutOrStdout()
	switch s.output {
	case "json", "yaml":
		return s.print(out, a)
	case "name":
		for _, e := range a.Entries {
			fmt.Fprintln(out, e.Sequence)
		}
		return nil
	}
	head := []string{"ENTRY", "TIME", "ACTOR", "ROLE", "FROM", "METHOD", "WHAT", "OUTCOME"}
	if s.output == "wide" {
		head = append(head, "HASH")
	}
	var rows [][]string
	for _, e := range a.Entries {
		row := []string{strconv.FormatUint(e.Sequence, 10), e.Time, e.Actor, e.Role, e.Address, e.Method, e.What, e.Outcome}
		if s.output == "wide" {
			row = append(row, e.Hash)
		}
		rows = append(rows, row)
	}
	if err := table(out, head, rows); err != nil || !a.Verified {
		return err
	}
	_, err := fmt.Fprintf(cmd.ErrOrStderr(), "the chain of entries %d to %d is whole; the newest has the hash %s\n", a.First, a.Last, a.Hash)
	return err
}
