package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

func newControlCommand(s *settings) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "control remove NAME",
		Short: "Change which controls there are",
		Args:  cobra.NoArgs,
		RunE:  func(*cobra.Command, []string) error { return errors.New("control what? remove NAME") },
	}
	cmd.AddCommand(&cobra.Command{
		Use:   "remove NAME",
		Short: "Take a control that has stopped out for good",
		Long: `Take a control that has stopped out for good: its vote no longer counts. Without it, a control that never comes
back is still one of those of which most have to be there.

The control has to be stopped before. Its data directory is of no use any more; to bring it back, let it join anew with
an empty one.`,
		Example: `  pyservectl control remove c3`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := s.deadline(cmd.Context())
			defer cancel()
			c, err := s.connect(ctx, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			defer c.close()
			if _, err := c.RemoveControl(ctx, &operatorv1.RemoveControlRequest{Name: args[0]}); err != nil {
				return plain(err)
			}
			if s.structured() {
				return s.print(cmd.OutOrStdout(), map[string]string{"removed": args[0]})
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "removed the control %s\n", args[0])
			return err
		},
	})
	return cmd
}
