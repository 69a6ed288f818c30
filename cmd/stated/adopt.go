package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"stated.dev/stated/daemon/adopt"
)

// dockerRoot is where dockerd keeps its data unless told otherwise.
const dockerRoot = "/var/lib/docker"

func adoptCommand() *cobra.Command {
	var check bool
	cmd := &cobra.Command{
		Use:   "adopt --check [ROOT]",
		Short: "Report on a Docker data root without touching it",
		Long: `Reads a data root (default ` + dockerRoot + `) and reports what is in it, what of it is broken and what is left alone.
Nothing is written. To adopt the root, stop dockerd and start "stated daemon --data-root ROOT".

Exit code 0 says that there are no problems, 1 that there are.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !check {
				return fmt.Errorf(`only "adopt --check" is a command: to adopt a data root, start "stated daemon --data-root ROOT" on it`)
			}
			root := dockerRoot
			if len(args) == 1 {
				root = args[0]
			}
			report, err := adopt.Check(cmd.Context(), root)
			if err != nil {
				return err
			}
			printReport(cmd.OutOrStdout(), report)
			if len(report.Problems) > 0 {
				return exitError(1)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&check, "check", false, "only look")
	return cmd
}

func printReport(w io.Writer, r adopt.Report) {
	fmt.Fprintf(w, "data root %s, graph driver %s\n", r.Root, strings.Join(r.Drivers, ", "))
	for _, c := range r.Counts {
		fmt.Fprintf(w, "%7d %s\n", c.N, c.Kind)
	}
	part := func(title string, items []adopt.Item) {
		if len(items) == 0 {
			return
		}
		fmt.Fprintf(w, "\n%s:\n", title)
		for _, i := range items {
			fmt.Fprintf(w, "  %-10s  %s: %s\n", i.Subsystem, i.Object, i.Text)
		}
	}
	part("Problems", r.Problems)
	part("To be known", r.Notes)
	if len(r.Unknown) > 0 {
		fmt.Fprintf(w, "\nNot known to be Docker's, and left alone:\n")
		for _, path := range r.Unknown {
			fmt.Fprintf(w, "  %s\n", path)
		}
	}
	if len(r.Problems) == 0 {
		fmt.Fprintln(w, "\nno problems")
	} else {
		fmt.Fprintf(w, "\n%d problems; each concerns its object alone, and nothing would be deleted\n", len(r.Problems))
	}
}
