// Command stated keeps the state of a container host. "stated daemon" runs it; the other commands are its clients.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// version is set when the binary is built.
var version = "0.1.0-dev"

func main() { os.Exit(run()) }

// run returns the exit code: 0, or 1 after an error, which it prints; a command may choose another code by exitError.
func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := rootCommand().ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	var exit exitError
	if errors.As(err, &exit) {
		return int(exit)
	}
	fmt.Fprintln(os.Stderr, "stated:", err)
	return 1
}

// exitError ends the program with a code after the command has said all there is to say.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "stated",
		Short:         "Keep the state of a container host",
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       version,
	}
	root.PersistentFlags().StringP("host", "H", "", "address of the daemon (default: STATED_HOST, DOCKER_HOST, then unix:///run/stated/stated.sock)")
	root.AddCommand(daemonCommand(), versionCommand(), phasesCommand(), infoCommand(),
		doctorCommand(), adoptCommand(), handbackCommand(), cleanupCommand(), volumeCommand(), kvCommand())
	return root
}
