// Testcontainers for Node: npm install testcontainers @kubernetes/client-node; node --test
import assert from 'node:assert/strict';
import {after, before, beforeEach, test} from 'node:test';
import {CoreV1Api, KubeConfig} from '@kubernetes/client-node';
import {GenericContainer, Wait} from 'testcontainers';

const image = process.env.KIND_IMAGE ?? 'registry.example.com/kind:1.37';
let kind, files, kubernetes;

before(async () => {
  // Node's fetch refuses port 10080.
  kind = await new GenericContainer(image).withPrivilegedMode().withExposedPorts(2375, 8443, 10081)
    .withWaitStrategy(Wait.forHttp('/kubernetes-ready', 10081)).withStartupTimeout(120_000).start();
  files = `http://${kind.getHost()}:${kind.getMappedPort(10081)}`;
  const config = new KubeConfig();
  config.loadFromString(await (await fetch(`${files}/config?port=${kind.getMappedPort(8443)}`)).text());
  kubernetes = config.makeApiClient(CoreV1Api);
});

after(() => kind?.stop());

// The cluster as it was baked, for each test.
beforeEach(async () => {
  const answer = await fetch(`${files}/reset?wait=120`, {method: 'POST', headers: {'X-Kind': 'reset'}});
  assert.ok(answer.ok, await answer.text());
});

for (const time of ['first', 'second']) {
  test(`what an earlier test has created is gone: ${time}`, async () => {
    await kubernetes.createNamespace({body: {metadata: {name: 'mine'}}});
  });
}

test('the node is ready', async () => {
  const {items} = await kubernetes.listNode();
  assert.equal(items[0].status.conditions.find(condition => condition.type === 'Ready').status, 'True');
});

test('the engine answers', async () => {
  const answer = await fetch(`http://${kind.getHost()}:${kind.getMappedPort(2375)}/_ping`);
  assert.equal(await answer.text(), 'OK');
});
