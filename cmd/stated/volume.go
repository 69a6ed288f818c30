package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"stated.dev/stated/api/router/volumes"
	"stated.dev/stated/api/types"
	"stated.dev/stated/daemon"
)

func volumeCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "volume", Short: "Move volumes, and find those that have lost their records"}
	cmd.AddCommand(volumeAdoptCommand(), volumeExportCommand(), volumeImportCommand())
	return cmd
}

func volumeAdoptCommand() *cobra.Command {
	var cfg daemon.Config
	var configFile string
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "adopt [NAME...]",
		Short: "Record volumes that have lost their records, and say what is missing",
		Long: `Looks for the volumes that containers need and for directories of volumes, and gives those that have no record one, from
opts.json and what the containers' records tell. It makes no data and removes nothing. What nobody can know any more,
such as labels, is named.

A daemon that runs does it. With --data-root the command does it itself, on the data root of a daemon that is stopped.

Exit code 0 says that nothing is missing, 2 that something is.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if cfg.UsernsRemap != "" && cfg.Root == "" {
				return errors.New("--userns-remap goes with --data-root: a daemon that runs knows its users")
			}
			req := volumes.AdoptRequest{Names: args, DryRun: dryRun}
			adopt := adoptOnline
			if cfg.Root != "" {
				adopt = func(cmd *cobra.Command, req volumes.AdoptRequest) (types.VolumeAdoption, error) {
					return adoptOffline(cmd, cfg, configFile, req)
				}
			}
			doc, err := adopt(cmd, req)
			if err != nil {
				return err
			}
			if !printAdoption(cmd.OutOrStdout(), doc) {
				return exitError(2)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "record nothing")
	cmd.Flags().StringVar(&cfg.Root, "data-root", "", "the data root of a daemon that is stopped")
	cmd.Flags().StringVar(&cfg.UsernsRemap, "userns-remap", "", "with --data-root: the daemon's: user whose subordinate ids containers run with: default, USER, USER:GROUP, UID or UID:GID")
	cmd.Flags().StringVar(&configFile, "config-file", "", "with --data-root: the daemon's configuration file (default "+daemon.DefaultConfigFile+", if it is there)")
	return cmd
}

func adoptOnline(cmd *cobra.Command, req volumes.AdoptRequest) (doc types.VolumeAdoption, err error) {
	c, err := newClient(cmd)
	if err != nil {
		return doc, err
	}
	query := url.Values{"name": req.Names}
	if req.DryRun {
		query.Set("dry-run", "1")
	}
	if err := c.do(cmd.Context(), http.MethodPost, "/stated/volumes/adopt?"+query.Encode(), nil, &doc); err != nil {
		return doc, fmt.Errorf("%w (for a daemon that is stopped, name its data root with --data-root)", err)
	}
	return doc, nil
}

func adoptOffline(cmd *cobra.Command, cfg daemon.Config, configFile string, req volumes.AdoptRequest) (doc types.VolumeAdoption, err error) {
	merged, err := mergeConfig(cmd, cfg, configFile)
	if err != nil {
		return doc, err
	}
	log, err := newLogger(os.Stderr, merged)
	if err != nil {
		return doc, err
	}
	return daemon.AdoptVolumesOffline(cmd.Context(), merged, log, req)
}

// adoptionWords are how the states of an adoption are told.
var adoptionWords = map[string]string{
	"kept":      "has its record",
	"recorded":  "is recorded now",
	"possible":  "has no record, and would get one",
	"missing":   "is missing",
	"uncertain": "cannot be looked at",
}

// printAdoption reports whether nothing is missing.
func printAdoption(w io.Writer, doc types.VolumeAdoption) bool {
	whole := len(doc.Problems) == 0
	for _, v := range doc.Volumes {
		fmt.Fprintf(w, "%s (%s) %s\n", v.Name, v.Driver, adoptionWords[v.State])
		for _, part := range []struct {
			title string
			lines []string
		}{{"found", v.Found}, {"missing", v.Missing}, {"lost", v.Lost}} {
			for _, line := range part.lines {
				fmt.Fprintf(w, "  %s: %s\n", part.title, line)
			}
		}
		whole = whole && len(v.Missing) == 0
	}
	printFindings(w, "Problems", doc.Problems)
	if len(doc.Volumes) == 0 && whole {
		fmt.Fprintln(w, "there are no volumes, and no container needs one")
	}
	return whole
}

func volumeExportCommand() *cobra.Command {
	var file string
	var pause bool
	cmd := &cobra.Command{
		Use:   "export NAME [> FILE]",
		Short: "Write a volume to a tar that import takes",
		Long: `Writes a volume with its driver, options, labels and files as one tar (docs/formats.md). The running containers that use it
are paused for the moment in which its files are cloned, where the file system can do that (XFS, btrfs). Elsewhere files
are read as they are while containers write, unless --pause holds these still until everything is read.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if file == "" && isTerminal(os.Stdout) {
				return errors.New("a tar is nothing for a terminal: redirect the output, or name a file with --output")
			}
			c, err := newClient(cmd)
			if err != nil {
				return err
			}
			query := ""
			if pause {
				query = "?pause=1"
			}
			resp, err := c.send(cmd.Context(), http.MethodGet, "/stated/volumes/"+url.PathEscape(args[0])+"/export"+query, nil)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			if err := writeExport(cmd.OutOrStdout(), file, resp.Body); err != nil {
				return err
			}
			var done types.VolumeExport
			if err := json.Unmarshal([]byte(resp.Trailer.Get(volumes.ExportTrailer)), &done); err != nil {
				return fmt.Errorf("the export broke off: what was written is not whole (%w)", err)
			}
			printExport(cmd.ErrOrStderr(), args[0], done)
			return nil
		},
	}
	cmd.Flags().StringVarP(&file, "output", "o", "", "file to write, instead of the standard output")
	cmd.Flags().BoolVar(&pause, "pause", false, "where files cannot be cloned, pause the containers until everything is read")
	return cmd
}

// writeExport writes the stream to the file, or to out without one. A file that is not whole is removed.
func writeExport(out io.Writer, file string, body io.Reader) (err error) {
	if file == "" {
		_, err := io.Copy(out, body)
		return err
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			err = errors.Join(err, os.Remove(file))
		}
	}()
	if _, err := io.Copy(f, body); err != nil {
		return err
	}
	return f.Sync()
}

func printExport(w io.Writer, name string, done types.VolumeExport) {
	fmt.Fprintf(w, "volume %s: %d entries, %s of files, consistency: %s", name, done.Entries, units.BytesSize(float64(done.Bytes)), done.Consistency)
	if done.Reason != "" {
		fmt.Fprintf(w, " (no snapshot: %s)", done.Reason)
	}
	fmt.Fprintln(w)
	if len(done.Paused) > 0 {
		took := time.Duration(done.PausedSeconds * float64(time.Second)).Round(100 * time.Microsecond)
		fmt.Fprintf(w, "paused for %s: %s\n", took, strings.Join(done.Paused, ", "))
	}
	for _, what := range done.LeftOut {
		fmt.Fprintf(w, "left out: %s\n", printable(what))
	}
}

func volumeImportCommand() *cobra.Command {
	var file string
	var dataOnly bool
	cmd := &cobra.Command{
		Use:   "import [NAME] [< FILE]",
		Short: "Make a volume of what export wrote",
		Long: `Makes a new local volume of an export, under the name that it had or another one. A name that is taken is refused. The
volume appears when everything has come whole, or not at all.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			in := cmd.InOrStdin()
			if file != "" {
				f, err := os.Open(file)
				if err != nil {
					return err
				}
				defer f.Close()
				in = f
			}
			c, err := newClient(cmd)
			if err != nil {
				return err
			}
			query := url.Values{}
			if len(args) == 1 {
				query.Set("name", args[0])
			}
			if dataOnly {
				query.Set("data-only", "1")
			}
			var done types.VolumeImport
			// Not a type that the client knows how to measure or close: the body is a stream.
			if err := c.do(cmd.Context(), http.MethodPost, "/stated/volumes/import?"+query.Encode(), struct{ io.Reader }{in}, &done); err != nil {
				return err
			}
			return printImport(cmd.OutOrStdout(), done)
		},
	}
	cmd.Flags().StringVarP(&file, "input", "i", "", "file to read, instead of the standard input")
	cmd.Flags().BoolVar(&dataOnly, "data-only", false, "make an ordinary local volume of the files, without the driver and options that the volume had")
	return cmd
}

func printImport(w io.Writer, done types.VolumeImport) error {
	var v struct{ Name string }
	if err := json.Unmarshal(done.Volume, &v); err != nil {
		return err
	}
	fmt.Fprintf(w, "volume %s: %d entries, %s of files\n", v.Name, done.Entries, units.BytesSize(float64(done.Bytes)))
	for _, what := range done.LeftOut {
		fmt.Fprintf(w, "not there: %s\n", printable(what))
	}
	return nil
}

// printable quotes a text that would do more to a terminal than to be seen.
func printable(text string) string {
	if strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return strconv.Quote(text)
	}
	return text
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
