// Command hello is the program of the first image: a small static web server that says who it is and counts its
// visitors in a file, so that a volume can be seen to last.
package main

import (
	"fmt"
	"log"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
)

func main() {
	dir := "/data"
	if len(os.Args) > 1 {
		dir = os.Args[1]
	}
	host, err := os.Hostname()
	if err != nil {
		log.Fatal(err)
	}
	v := &visitors{path: filepath.Join(dir, "visitors")}
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		n, err := v.next()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		log.Printf("visitor %d from %s", n, r.RemoteAddr)
		fmt.Fprintf(w, "hello from container %s, visitor %d\n", host, n)
	})
	log.SetFlags(0)
	log.SetOutput(os.Stdout)
	log.Print("listening on port 80")
	log.Fatal(http.ListenAndServe(":80", nil))
}

type visitors struct {
	mu   sync.Mutex // guards the file
	path string
}

func (v *visitors) next() (int, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	text, err := os.ReadFile(v.path)
	if err != nil && !os.IsNotExist(err) {
		return 0, err
	}
	n, _ := strconv.Atoi(strings.TrimSpace(string(text))) // a new file counts from nothing
	n++
	return n, os.WriteFile(v.path, []byte(strconv.Itoa(n)+"\n"), 0o644)
}
