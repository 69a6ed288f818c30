package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"stated.dev/stated/daemon"
)

func handbackCommand() *cobra.Command {
	return offlineCommand(&cobra.Command{
		Use:   "handback",
		Short: "Make a data root whole for dockerd after a power cut",
		Long: `Brings the last changes into Docker's files, repairs layers and syncs everything, with the daemon stopped. dockerd may
start on the data root afterwards. After a clean stop of the daemon nothing is left to do.`,
	}, daemon.HandBack, "the data root is whole; dockerd may start on it")
}

func cleanupCommand() *cobra.Command {
	return offlineCommand(&cobra.Command{
		Use:   "cleanup",
		Short: "Remove what a stopped daemon left outside its data root",
		Long: `Removes bridges, packet rules, network namespaces, mounts and the runtime directory of a daemon that is stopped. It
refuses while containers run, and names them. The data root keeps everything it has.`,
	}, daemon.CleanUp, "")
}

// offlineCommand completes a command that works on a daemon's directories while the daemon is stopped.
func offlineCommand(cmd *cobra.Command, run func(context.Context, daemon.Config, *slog.Logger) ([]string, error), last string) *cobra.Command {
	var cfg daemon.Config
	var configFile string
	cmd.Args = cobra.NoArgs
	f := cmd.Flags()
	f.StringVar(&configFile, "config-file", "", "the daemon's configuration file (default "+daemon.DefaultConfigFile+", if it is there)")
	f.StringVar(&cfg.Root, "data-root", "", "the daemon's data root (default "+daemon.DefaultRoot+")")
	f.StringVar(&cfg.ExecRoot, "exec-root", "", "the daemon's exec root (default "+daemon.DefaultExecRoot+")")
	f.StringVarP(&cfg.StorageDriver, "storage-driver", "s", "", "graph driver (default: by what the data root has)")
	f.StringArrayVar(&cfg.StorageOpts, "storage-opt", nil, "graph driver option key=value")
	f.StringVar(&cfg.UsernsRemap, "userns-remap", "", "the daemon's: user whose subordinate ids containers run with: default, USER, USER:GROUP, UID or UID:GID")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		merged, err := mergeConfig(cmd, cfg, configFile)
		if err != nil {
			return err
		}
		log, err := newLogger(os.Stderr, merged)
		if err != nil {
			return err
		}
		done, err := run(cmd.Context(), merged, log)
		for _, line := range done {
			fmt.Fprintln(cmd.OutOrStdout(), line)
		}
		if err == nil && last != "" {
			fmt.Fprintln(cmd.OutOrStdout(), last)
		}
		return err
	}
	return cmd
}
