package archive

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/klauspost/compress/gzip"
	"github.com/vbatts/tar-split/tar/asm"
	"github.com/vbatts/tar-split/tar/storage"
	"golang.org/x/sys/unix"
)

// Assemble returns the bytes of the tar from which record was made, with contents taken from the files below dir.
// A file that was changed since is an error of Read. Closing the result waits for the goroutine that feeds it;
// record stays the caller's to close, after that.
func Assemble(record io.Reader, dir string) (io.ReadCloser, error) {
	zip, err := gzip.NewReader(record)
	if err != nil {
		return nil, fmt.Errorf("open the record of the tar: %w", err)
	}
	root, err := openRoot(dir)
	if err != nil {
		return nil, err
	}
	pr, pw := io.Pipe()
	a := &assembly{PipeReader: pr, done: make(chan struct{})}
	go func() {
		defer close(a.done)
		defer unix.Close(root)
		err := asm.WriteOutputTarStream(contents{root}, storage.NewJSONUnpacker(zip), pw)
		pw.CloseWithError(err) // nil means io.EOF
	}()
	return a, nil
}

type assembly struct {
	*io.PipeReader
	done chan struct{}
}

func (a *assembly) Close() error {
	err := a.PipeReader.Close()
	<-a.done
	return err
}

// contents finds the files of a layer by the names that its tar had for them.
type contents struct{ root int }

func (c contents) Get(name string) (io.ReadCloser, error) {
	fd, err := openBeneath(c.root, cleanName(name), unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		unix.Close(fd)
		return nil, &os.PathError{Op: "open", Path: name, Err: errors.Join(err, errors.New("not a regular file"))}
	}
	return os.NewFile(uintptr(fd), name), nil
}
