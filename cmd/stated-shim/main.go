// Command stated-shim stands beside one container, and is the init process of containers that ask for one: it does
// the latter when it is called docker-init.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"stated.dev/stated/daemon/shim"
	"stated.dev/stated/daemon/shim/pid1"
)

// version is set by the linker.
var version = "dev"

func main() {
	runtime.MemProfileRate = 0 // its tables would be a tenth of the process
	if filepath.Base(os.Args[0]) == "docker-init" {
		os.Exit(pid1.Main(os.Args[1:]))
	}
	os.Exit(run(os.Args[1:]))
}

func run(args []string) int {
	if len(args) == 0 {
		fmt.Fprintln(os.Stderr, "stated-shim is started by stated, not by hand")
		return 2
	}
	if strings.HasPrefix(args[0], "-") && args[0] != "--version" {
		shim.ServeContainerd(parts()) // it reads the flags itself
		return 0
	}
	switch args[0] {
	case "serve":
		return shim.Serve(version, parts())
	case "--version", "version":
		fmt.Println("stated-shim", version)
		return 0
	}
	fmt.Fprintf(os.Stderr, "stated-shim: unknown command %q\n", args[0])
	return 2
}
