package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"stated.dev/stated/api/types"
)

func doctorCommand() *cobra.Command {
	var fix bool
	cmd := &cobra.Command{
		Use:   "doctor [SUBSYSTEM]",
		Short: "List what the daemon found wrong and set aside",
		Long: `Lists what every subsystem found wrong and left as it was: layers, images, volumes, networks, containers, cluster, journal, root.
What can be repaired without losing anything is repaired when the daemon starts; the list holds what is left.

Exit code 0 says that there are no problems, 2 that there are.`,
		Args:      cobra.MaximumNArgs(1),
		ValidArgs: []string{"layers", "images", "volumes", "networks", "containers", "cluster", "journal", "root"},
		RunE: func(cmd *cobra.Command, args []string) error {
			if fix {
				return errors.New("--fix: there is no repair that a running daemon can do; restart it, which repairs what can be repaired without losing anything, and see docs/doctor.md for the rest")
			}
			c, err := newClient(cmd)
			if err != nil {
				return err
			}
			var doc types.Doctor
			if err := c.get(cmd.Context(), "/stated/doctor", &doc); err != nil {
				return err
			}
			if len(args) == 1 {
				doc.Problems, doc.Notes = of(args[0], doc.Problems), of(args[0], doc.Notes)
			}
			out := cmd.OutOrStdout()
			printFindings(out, "Problems", doc.Problems)
			printFindings(out, "To be known", doc.Notes)
			if len(doc.Problems) > 0 {
				return exitError(2)
			}
			_, err = fmt.Fprintln(out, "no problems")
			return err
		},
	}
	cmd.Flags().BoolVar(&fix, "fix", false, "not possible while the daemon runs: a start repairs what can be repaired")
	return cmd
}

func of(subsystem string, list []types.Finding) []types.Finding {
	var out []types.Finding
	for _, f := range list {
		if f.Subsystem == subsystem {
			out = append(out, f)
		}
	}
	return out
}

func printFindings(w io.Writer, title string, list []types.Finding) {
	if len(list) == 0 {
		return
	}
	fmt.Fprintf(w, "%s:\n", title)
	for _, f := range list {
		if f.Object == "" {
			fmt.Fprintf(w, "  %-10s  %s\n", f.Subsystem, f.Text)
			continue
		}
		fmt.Fprintf(w, "  %-10s  %s: %s\n", f.Subsystem, f.Object, f.Text)
	}
}
