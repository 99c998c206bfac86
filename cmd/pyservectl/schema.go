package main

import (
	"github.com/spf13/cobra"

	"github.com/pyserve/pyserve/config"
)

func newSchemaCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "schema",
		Short: "Print the JSON Schema of configurations, for editors",
		Long: `Print the JSON Schema of configurations (draft 7), for completion and checks in an editor.

A configuration whose first line is as below is checked by every editor that has the YAML language server:
  # yaml-language-server: $schema=./config.schema.json`,
		Example: `  pyservectl schema > config.schema.json`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := cmd.OutOrStdout().Write(config.Schema())
			return err
		},
	}
}
