// SPDX-License-Identifier: Apache-2.0

package testbed_test

import (
	"context"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"time"
)

// probe is what the test binary does in a pod. It does not return.
//
//   - serve answers every HTTP request with the contents of the file in /mnt that it names.
//   - download stands in for a storage initializer: it writes what it was asked for into its second argument.
//   - dial resolves and dials its arguments, NAME:PORT, until each answered once.
func probe(program string, args []string) {
	switch program {
	case "serve":
		log.Print("serving")
		server := &http.Server{Addr: ":8080", Handler: http.FileServerFS(os.DirFS("/mnt")), ReadHeaderTimeout: time.Second}
		log.Fatal(server.ListenAndServe())
	case "download":
		if err := os.WriteFile(args[1]+"/asked", []byte(args[0]), 0o644); err != nil {
			log.Fatal(err)
		}
		os.Exit(0)
	case "dial":
		for _, address := range args {
			dialUntilAnswered(address)
		}
		os.Exit(0)
	default:
		log.Fatalf("unknown program %q", program)
	}
}

func dialUntilAnswered(address string) {
	for {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
		cancel()
		if err == nil {
			fmt.Println("reached", address, "at", conn.RemoteAddr())
			_ = conn.Close()
			return
		}
		fmt.Println(err)
		time.Sleep(200 * time.Millisecond)
	}
}
