// SPDX-License-Identifier: Apache-2.0

package testbed_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// probe is what the test binary does in a pod. It does not return.
//
//   - serve answers every HTTP request with the contents of the file in /mnt that it names.
//   - download stands in for a storage initializer: it writes what it was asked for into its second argument.
//   - hook is an admission webhook that refuses everything. It prints its certificate, whose name is its argument.
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
	case "hook":
		refuseAll(args[0])
	case "dial":
		for _, address := range args {
			dialUntilAnswered(address)
		}
		os.Exit(0)
	default:
		log.Fatalf("unknown program %q", program)
	}
}

func refuseAll(name string) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		log.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{name}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		log.Fatal(err)
	}
	if err := pem.Encode(os.Stdout, &pem.Block{Type: "CERTIFICATE", Bytes: der}); err != nil {
		log.Fatal(err)
	}
	server := &http.Server{
		Addr: ":8443", ReadHeaderTimeout: time.Second,
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			var review admissionv1.AdmissionReview
			if err := json.NewDecoder(r.Body).Decode(&review); err != nil {
				log.Fatal(err)
			}
			review.Response = &admissionv1.AdmissionResponse{
				UID: review.Request.UID, Result: &metav1.Status{Message: "refused by a pod"},
			}
			w.Header().Set("Content-Type", "application/json")
			if err := json.NewEncoder(w).Encode(review); err != nil {
				log.Fatal(err)
			}
		}),
	}
	log.Fatal(server.ListenAndServeTLS("", ""))
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
