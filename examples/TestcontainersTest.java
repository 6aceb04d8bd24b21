// Testcontainers for Java: org.testcontainers:testcontainers-junit-jupiter:2.0.5, io.fabric8:kubernetes-client:7.4.0

import static org.junit.jupiter.api.Assertions.assertEquals;

import io.fabric8.kubernetes.client.Config;
import io.fabric8.kubernetes.client.KubernetesClient;
import io.fabric8.kubernetes.client.KubernetesClientBuilder;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse.BodyHandlers;
import java.time.Duration;
import org.junit.jupiter.api.Test;
import org.testcontainers.containers.GenericContainer;
import org.testcontainers.containers.wait.strategy.Wait;
import org.testcontainers.junit.jupiter.Container;
import org.testcontainers.junit.jupiter.Testcontainers;

@Testcontainers
class TestcontainersTest {
    @Container
    static final GenericContainer<?> KIND =
            new GenericContainer<>("registry.example.com/kind:1.37")
                    .withPrivilegedMode(true)
                    .withExposedPorts(2375, 8443, 10081)
                    .waitingFor(Wait.forHttp("/kubernetes-ready").forPort(10081))
                    .withStartupTimeout(Duration.ofMinutes(2));

    private static String get(String path) throws Exception {
        URI uri = URI.create("http://" + KIND.getHost() + ":" + KIND.getMappedPort(10081) + path);
        return HttpClient.newHttpClient().send(HttpRequest.newBuilder(uri).build(), BodyHandlers.ofString()).body();
    }

    @Test
    void theNodeIsThere() throws Exception {
        Config config = Config.fromKubeconfig(get("/config?port=" + KIND.getMappedPort(8443)));
        try (KubernetesClient client = new KubernetesClientBuilder().withConfig(config).build()) {
            assertEquals(1, client.nodes().list().getItems().size());
        }
    }
}
