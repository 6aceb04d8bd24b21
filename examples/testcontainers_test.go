// Testcontainers for Go: go get github.com/testcontainers/testcontainers-go@v0.45.0 k8s.io/client-go; go test
package example

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/wait"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

func start(t *testing.T) *kubernetes.Clientset {
	ctx := context.Background()
	kind, err := testcontainers.Run(ctx, "registry.example.com/kind:1.37",
		testcontainers.WithHostConfigModifier(func(host *container.HostConfig) { host.Privileged = true }),
		testcontainers.WithExposedPorts("2375/tcp", "8443/tcp", "10081/tcp"),
		testcontainers.WithWaitStrategyAndDeadline(2*time.Minute, wait.ForHTTP("/kubernetes-ready").WithPort("10081/tcp").WithStartupTimeout(2*time.Minute)))
	testcontainers.CleanupContainer(t, kind)
	check(t, err)
	files, err := kind.PortEndpoint(ctx, "10081/tcp", "http")
	check(t, err)
	api, err := kind.MappedPort(ctx, "8443/tcp")
	check(t, err)
	answer, err := http.Get(fmt.Sprintf("%s/config?port=%d", files, api.Num()))
	check(t, err)
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	check(t, err)
	config, err := clientcmd.RESTConfigFromKubeConfig(text)
	check(t, err)
	client, err := kubernetes.NewForConfig(config)
	check(t, err)
	return client
}

func TestTheNodeIsThere(t *testing.T) {
	nodes, err := start(t).CoreV1().Nodes().List(context.Background(), metav1.ListOptions{})
	check(t, err)
	if len(nodes.Items) != 1 {
		t.Fatalf("%d nodes", len(nodes.Items))
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
