// Command testprog is what runs in the containers of the runtime's tests.
package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	args := os.Args[1:]
	if len(args) == 0 {
		os.Exit(2)
	}
	verb, args := args[0], args[1:]
	switch verb {
	case "exit": // exit CODE
		os.Exit(number(args[0]))
	case "echo": // echo WORD...
		fmt.Println(strings.Join(args, " "))
	case "both": // both OUT ERR
		fmt.Println(args[0])
		fmt.Fprintln(os.Stderr, args[1])
	case "cat":
		_, _ = io.Copy(os.Stdout, os.Stdin)
		fmt.Println("EOF")
	case "wait": // until SIGTERM (exit 0) or SIGUSR1 (exit 7)
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, unix.SIGTERM, unix.SIGUSR1)
		fmt.Println("ready")
		if <-signals == unix.SIGUSR1 {
			os.Exit(7)
		}
	case "lines": // lines COUNT PER_SECOND
		lines(number(args[0]), number(args[1]))
	case "sizes": // tells the terminal's size for each line of input
		in := bufio.NewScanner(os.Stdin)
		for in.Scan() {
			ws, err := unix.IoctlGetWinsize(0, unix.TIOCGWINSZ)
			if err != nil {
				fmt.Println(err)
				continue
			}
			fmt.Printf("size %dx%d\n", ws.Col, ws.Row)
		}
	case "flood": // flood BYTES, then wait
		buf := make([]byte, 64<<10)
		for i := range buf {
			buf[i] = 'x'
			if i%100 == 99 {
				buf[i] = '\n'
			}
		}
		for left := number(args[0]); left > 0; left -= len(buf) {
			_, _ = os.Stdout.Write(buf[:min(left, len(buf))])
		}
	case "leave": // leaves a child behind that holds the output
		cmd := exec.Command("/proc/self/exe", "sleep", args[0])
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Start(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("left")
	case "sleep": // sleep SECONDS
		time.Sleep(time.Duration(number(args[0])) * time.Second)
	case "eat": // eat MEBIBYTES in a child, and tell how it ended
		cmd := exec.Command("/proc/self/exe", "hog", args[0])
		if err := cmd.Run(); err != nil {
			fmt.Println(err)
		}
		os.Exit(3)
	case "hog":
		buf := make([]byte, number(args[0])<<20)
		for i := 0; i < len(buf); i += 4096 {
			buf[i] = 1
		}
	case "score": // the OOM score of this process
		data, _ := os.ReadFile("/proc/self/oom_score_adj")
		fmt.Print(string(data))
	default:
		fmt.Fprintln(os.Stderr, "unknown verb", verb)
		os.Exit(2)
	}
}

// lines writes numbered lines at a rate, in bursts of a millisecond, and says at the end how long the longest write
// took.
func lines(count, rate int) {
	var longest time.Duration
	start := time.Now()
	for i := range count {
		due := start.Add(time.Duration(i) * time.Second / time.Duration(rate))
		if d := time.Until(due); d > time.Millisecond {
			time.Sleep(d)
		}
		before := time.Now()
		fmt.Printf("line %07d\n", i)
		longest = max(longest, time.Since(before))
	}
	fmt.Printf("longest %d\n", longest.Microseconds())
}

func number(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	return n
}
