// SPDX-License-Identifier: Apache-2.0

package memcached

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"serverless.xyz/outrigger/memcached/memcachedtest"
)

// TestProxyAnswersAsOneServerWould sends the same to a single memcached and to the proxy of a ring of three, and
// compares the answers byte for byte.
func TestProxyAnswersAsOneServerWould(t *testing.T) {
	many := make([]string, 500)
	for i := range many {
		many[i] = fmt.Sprintf("many:%d", i)
	}
	var setMany strings.Builder
	for i, key := range many {
		if i%3 != 0 {
			fmt.Fprintf(&setMany, "set %s %d 0 %d\r\n%s\r\n", key, i, len(key), key)
		}
	}
	big := strings.Repeat("0123456789abcdef", 1<<16-64)
	long := strings.Repeat("k", 250)
	tests := map[string]string{
		"set and get":               "set a 5 0 3\r\nabc\r\nget a\r\n",
		"miss":                      "get nothing\r\ngets nothing\r\n",
		"multi-get keeps order":     setMany.String() + "get " + strings.Join(many, " ") + "\r\n",
		"multi-get, repeated keys":  "set a 0 0 1\r\n1\r\nset b 0 0 1\r\n2\r\nget b a x b a\r\n",
		"pipelined":                 strings.Repeat("set p 0 0 1\r\n1\r\nget p q\r\nincr p 1\r\n", 200),
		"empty value":               "set e 0 0 0\r\n\r\nget e\r\n",
		"value with line ends":      "set e 0 0 8\r\na\r\nEND\r\n\r\nget e\r\n",
		"value of 1 MB":             "set big 0 0 " + strconv.Itoa(len(big)) + "\r\n" + big + "\r\nget big\r\n",
		"key of control characters": "set \x01\x7f\t 0 0 1\r\nx\r\nget \x01\x7f\t\r\n",
		"longest key":               "set " + long + " 0 0 1\r\nx\r\nget " + long + "\r\n",
		"add":                       "add n 0 0 1\r\n1\r\nadd n 0 0 1\r\n2\r\nget n\r\n",
		"replace":                   "replace r 0 0 1\r\n1\r\nset r 0 0 1\r\n1\r\nreplace r 7 0 1\r\n2\r\nget r\r\n",
		"append and prepend":        "append s 0 0 1\r\n1\r\nset s 0 0 1\r\n1\r\nappend s 0 0 1\r\n2\r\nprepend s 0 0 1\r\n0\r\nget s\r\n",
		"cas of a missing key":      "cas c 0 0 1 7\r\nx\r\n",
		"cas of a changed key":      "set c 0 0 1\r\n1\r\ncas c 0 0 1 18446744073709551615\r\n2\r\nget c\r\n",
		"delete":                    "delete d\r\nset d 0 0 1\r\n1\r\ndelete d\r\nget d\r\ndelete d 0\r\ndelete d 1\r\n",
		"touch":                     "touch t 10\r\nset t 0 0 1\r\n1\r\ntouch t 10\r\ntouch t -1\r\nget t\r\ntouch t x\r\n",
		"incr and decr":             "incr i 1\r\nset i 0 0 2\r\n99\r\nincr i 1\r\ndecr i 1000\r\nget i\r\nincr i x\r\nincr i -1\r\n",
		"incr wraps":                "set i 0 0 20\r\n18446744073709551615\r\nincr i 2\r\n",
		"incr of text":              "set i 0 0 1\r\nx\r\nincr i 1\r\n",
		"gat":                       "set g 3 0 1\r\n1\r\ngat 100 g h\r\ngat -1 g\r\nget g\r\ngat x g\r\n",
		"expired at once":           "set x 0 -1 1\r\n1\r\nget x\r\n",
		"flags":                     "set f 4294967295 0 1\r\n1\r\nget f\r\n",
		"noreply": "set q 0 0 1 noreply\r\n1\r\nget q\r\nadd q 0 0 1 noreply\r\n2\r\nincr q 5 noreply\r\nget q\r\n" +
			"delete q noreply\r\nget q\r\ntouch q 1 noreply\r\nverbosity 1 noreply\r\ndelete q 0 noreply\r\n",
		"verbosity":        "verbosity 1\r\nverbosity x\r\n",
		"unknown commands": "foo\r\nGET a\r\n\r\nget\r\ngets \r\ngat\r\ndelete\r\ntouch a\r\nincr a\r\nget\ta\r\nstats foo\r\n",
		"bare line feeds":  "set l 0 0 1\n1\r\nget l\n",
		"spaces":           "  get   a  b \r\nset  sp  0  0  1 \r\nx\r\nget sp\r\n",
		// Of two refused gets in one packet, 1.6.18 answers only the first.
		"key too long": "get a " + long + "k b\r\ndelete " + long + "k\r\nincr " + long + "k 1\r\ntouch " + long + "k 1\r\n",
		"too large": "set z 0 0 1\r\n1\r\nset z 0 0 1048577\r\n" + big + strings.Repeat(
			"x",
			1048577-len(big),
		) + "\r\nget z\r\n",
		"word behind the options": "set w 0 0 1 junk\r\n1\r\ntouch w 1 junk\r\n",
	}
	for name, script := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			one := memcachedtest.Start(t)
			ring := memcachedtest.StartRing(t, 3)
			_, addr := startProxy(t, startClient(t, documentOf(ring...), ClientOptions{}), ProxyOptions{})
			want, got := converse(t, one.Addr, script), converse(t, addr, script)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("answers (-memcached +proxy):\n%s", diff)
			}
			if strings.HasSuffix(want, "<closed>") {
				t.Error("memcached closed the connection; the test compares nothing behind that")
			}
		})
	}
}

// TestProxyUniqueSurvivesTheWayThere uses what gets returned, which differs from server to server.
func TestProxyUniqueSurvivesTheWayThere(t *testing.T) {
	_, addr := startProxy(t, startClient(t, documentOf(memcachedtest.StartRing(t, 3)...), ClientOptions{}), ProxyOptions{})
	for _, key := range []string{"a", "b", "c", "d"} {
		answer := converse(t, addr, "set "+key+" 1 0 1\r\n1\r\ngets "+key+" nothing\r\n")
		match := regexp.MustCompile(`^STORED\r\nVALUE ` + key + ` 1 1 (\d+)\r\n1\r\nEND\r\n$`).FindStringSubmatch(answer)
		if match == nil {
			t.Fatalf("answer = %q, want a value with a unique", answer)
		}
		script := fmt.Sprintf("cas %[1]s 1 0 1 %[2]s\r\n2\r\ncas %[1]s 1 0 1 %[2]s\r\n3\r\nget %[1]s\r\n", key, match[1])
		want := "STORED\r\nEXISTS\r\nVALUE " + key + " 1 1\r\n2\r\nEND\r\n"
		if diff := cmp.Diff(want, converse(t, addr, script)); diff != "" {
			t.Errorf("answers (-want +got):\n%s", diff)
		}
	}
}
