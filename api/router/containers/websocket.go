package containers

import (
	"encoding/binary"
	"io"
	"net/http"

	"github.com/gorilla/websocket"

	"stated.dev/stated/api/route"
)

// attachWebsocket joins a container's streams over a websocket, whose messages carry bare output: clients in a
// browser know no frames.
func (h handlers) attachWebsocket(w http.ResponseWriter, r *http.Request) error {
	req, err := attachRequest(r)
	if err != nil {
		return err
	}
	req.Stdin, req.Stdout, req.Stderr = true, true, true
	if !route.VersionBefore(r.Context(), "1.42") {
		req.Stdin, req.Stdout, req.Stderr = route.Bool(r, "stdin"), route.Bool(r, "stdout"), route.Bool(r, "stderr")
	}
	ctx, cancel := route.Streaming(r)
	defer cancel()
	stream, multiplexed, err := h.b.Attach(ctx, ref(r), req)
	if err != nil {
		return err
	}
	// A browser is let in from pages of this server's own address only, else any page could reach a daemon on TCP.
	conn, err := new(websocket.Upgrader).Upgrade(w, r, nil)
	if err != nil {
		_ = stream.Close() // Upgrade has told the client
		return nil
	}
	kind := websocket.BinaryMessage
	if route.VersionBefore(ctx, "1.28") {
		kind = websocket.TextMessage
	}
	input := make(chan struct{})
	go func() {
		defer close(input)
		feedMessages(stream, conn, req.Stdin)
	}()
	stop := make(chan struct{})
	go func() {
		defer close(stop)
		<-ctx.Done()
		_ = stream.Close() // only to make Read return
	}()

	var output io.Reader = stream
	if multiplexed {
		output = &unframed{r: stream}
	}
	sendMessages(conn, kind, output)
	_ = stream.Close() // its output has ended or nobody wants it
	_ = conn.Close()   // there is nobody to tell
	cancel()
	<-input
	<-stop
	return nil
}

// feedMessages passes the client's messages to stdin until the client goes, which ends the attachment: a websocket
// has no half that can be closed.
func feedMessages(stream Stream, conn *websocket.Conn, stdin bool) {
	for {
		_, message, err := conn.ReadMessage()
		if err != nil {
			_ = stream.Close() // only to make Read return
			return
		}
		if stdin {
			if _, err := stream.Write(message); err != nil {
				stdin = false // the process has closed it, and may go on writing
			}
		}
	}
}

func sendMessages(conn *websocket.Conn, kind int, output io.Reader) {
	buf := make([]byte, 32<<10)
	for {
		n, err := output.Read(buf)
		if n > 0 && conn.WriteMessage(kind, buf[:n]) != nil {
			return
		}
		if err != nil {
			_ = conn.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, "")) // the client may be gone
			return
		}
	}
}

// unframed reads the payloads of a multiplexed stream.
type unframed struct {
	r    io.Reader
	left uint32 // bytes of the frame still to come
}

func (u *unframed) Read(p []byte) (int, error) {
	for u.left == 0 {
		var header [8]byte
		if _, err := io.ReadFull(u.r, header[:]); err != nil {
			return 0, err
		}
		u.left = binary.BigEndian.Uint32(header[4:])
	}
	n, err := u.r.Read(p[:min(len(p), int(u.left))])
	u.left -= uint32(n)
	return n, err
}
