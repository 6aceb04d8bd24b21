// What a person sees of a node in a browser, from its start on. Called by run.sh, with docker.
//   node page.mjs NAME ADDRESS FAILING SCREENSHOTS
// NAME is a container whose dockerd waits for /go, ADDRESS is where it is reached; FAILING is the address of one whose
// kubelet does not start.
import assert from 'node:assert/strict';
import {execFileSync} from 'node:child_process';
import {createRequire} from 'node:module';
import {readFileSync} from 'node:fs';
import {join} from 'node:path';

const [name, address, failing, screenshots] = process.argv.slice(2);
const require = createRequire(join(process.cwd(), 'x.js'));
const {chromium} = require('playwright-core');
const axe = readFileSync(require.resolve('axe-core/axe.min.js'), 'utf8');
const docker = (...words) => execFileSync('docker', words, {encoding: 'utf8'});
const patience = 120_000, desktop = {width: 1000, height: 1100}, phone = {width: 360, height: 740};

const browser = await chromium.launch({executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', args: ['--no-sandbox', '--no-proxy-server']});

// Opens a page, and notes everything that should not be.
async function open(host, options = {}) {
  const context = await browser.newContext({viewport: desktop, ...options});
  const page = await context.newPage(), wrong = [];
  page.setDefaultTimeout(patience);
  page.on('pageerror', error => wrong.push(error.message));
  page.on('console', message => /Content Security Policy|Uncaught/.test(message.text()) && wrong.push(message.text()));
  page.on('request', request => new URL(request.url()).host === `${host}:10081` || request.url() === 'data:,' || wrong.push(request.url()));
  await page.goto(`http://${host}:10081/`);
  return {page, wrong};
}

async function shoot(page, title) {
  await page.screenshot({path: join(screenshots, `${title}.png`), fullPage: true});
  console.log(`${title}: ${(await page.locator('[role=status]').first().innerText()).replaceAll('\n', ' ')}`);
}

// The rules of WCAG that a program can check, and no sideways scrolling.
async function accessible(page) {
  await page.evaluate(axe);
  const {violations} = await page.evaluate(() => axe.run());
  assert.deepEqual(violations.map(({id, nodes}) => `${id}: ${nodes.map(node => node.html).join(' ')}`), []);
  assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), 'it scrolls sideways');
}

// How light the page's background is, from 0 to 255, and its text.
const lightness = page => page.evaluate(() => ['backgroundColor', 'color'].map(name =>
  getComputedStyle(document.body)[name].match(/\d+/g).reduce((sum, part) => sum + Number(part) / 3, 0)));

// Whether each bar ends at its step's second, and begins where one of the others does or ends, or at the beginning.
async function barsAreTrue(page, timeline) {
  const bars = await page.locator('#steps td:nth-child(2)').evaluateAll(cells => cells.map(cell => {
    const [bar, all] = [cell.firstChild, cell].map(one => one.getBoundingClientRect());
    return {from: (bar.left - all.left) / all.width, to: (bar.right - all.left) / all.width, least: 4 / all.width};
  }));
  assert.equal(bars.length, timeline.length);
  const places = timeline.map(step => step.seconds / timeline.at(-1).seconds * 0.99);
  bars.forEach(({from, to, least}, row) => {
    const {milestone} = timeline[row];
    assert.ok(Math.abs(to - places[row]) <= least, `${milestone} ends at ${to}, not at ${places[row]}`);
    assert.ok(from < least || places.slice(0, row).some(place => Math.abs(from - place) < least), `${milestone} begins at ${from}`);
  });
  assert.ok(bars.some(({from}) => from > 0.3) && bars.some(({from, to}) => to - from > 0.3), 'the bars are those of a start');
}

const says = (page, id, text) => page.locator(`#${id}`).filter({hasText: text}).waitFor();

// While it starts.
const {page, wrong} = await open(address);
await says(page, 'docker', 'not ready yet');
await says(page, 'waiting', 'dockerd: no answer yet');
assert.equal(await page.title(), 'not ready yet – kind');
assert.ok(await page.locator('#reset').isDisabled());
await accessible(page);
await shoot(page, 'booting');

// It follows without being loaded again.
docker('exec', name, 'touch', '/go');
await says(page, 'docker', '✔ ready');
await says(page, 'kubernetes', '✔ ready');
assert.equal(await page.title(), 'ready – kind');
assert.ok(await page.locator('#missing').isHidden() && await page.locator('#failure').isHidden());
const {timeline} = await (await fetch(`http://${address}:10081/status.json`)).json();
assert.deepEqual(await page.locator('#steps th').allInnerTexts(), timeline.map(step => step.milestone));
await barsAreTrue(page, timeline);
assert.match(await page.locator('#use').innerText(), new RegExp(`curl -fsS 'http://${address}:10081/config\\?wait=60' -o kubeconfig\n.*DOCKER_HOST=tcp://${address}:2375`));
await accessible(page);
await shoot(page, 'ready');

// What it says to copy works.
const [config, variables] = (await page.locator('#use').innerText()).split('\n');
docker('exec', name, 'sh', '-ec', `cd /tmp; curl() { kubectl get --raw "$(echo "$2" | sed s,http://[^/]*,,)" --server http://${address}:10081 >kubeconfig; }; ${config}; ${variables}; kubectl get nodes; docker ps`);

// Dark, and on a phone.
const [paper, ink] = await lightness(page);
assert.ok(paper > 200 && ink < 100, `a light page: ${paper}, ${ink}`);
for (const [title, options] of [['dark', {colorScheme: 'dark'}], ['phone', {viewport: phone}], ['phone-dark', {viewport: phone, colorScheme: 'dark', isMobile: true}]]) {
  const other = await open(address, options);
  await says(other.page, 'kubernetes', '✔ ready');
  await accessible(other.page);
  const [paper, ink] = await lightness(other.page);
  assert.equal(paper < 60 && ink > 200, options.colorScheme === 'dark', `${title}: ${paper}, ${ink}`);
  assert.equal(await other.page.evaluate(() => innerWidth), (options.viewport ?? desktop).width);
  await shoot(other.page, title);
  assert.deepEqual(other.wrong, []);
  await other.page.context().close();
}

// A reset begins only once it is confirmed.
docker('exec', name, 'kubectl', 'create', 'namespace', 'mine');
// Clicks on the button, and answers what it asks.
async function click(answer) {
  const asked = page.waitForEvent('dialog').then(async dialog => {
    await dialog[answer]();
    return dialog.message();
  });
  await page.locator('#reset').click();
  assert.match(await asked, /Reset the cluster\?/);
}
await click('dismiss');
docker('exec', name, 'kubectl', 'get', 'namespace', 'mine');
await click('accept');
await says(page, 'steps', 'Seconds since the reset');
await page.locator('#reset:enabled').waitFor();
await says(page, 'kubernetes', '✔ ready');
assert.equal(docker('exec', name, 'kubectl', 'get', 'namespace', 'mine', '--ignore-not-found'), '');
await shoot(page, 'reset');

// A script that somebody has smuggled in does not run.
await page.evaluate(() => document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.smuggled = true'})));
assert.equal(await page.evaluate(() => window.smuggled), undefined);
assert.equal(wrong.length, 1, wrong.join('\n'));
assert.match(wrong[0], /Content Security Policy/);

// A container that has gone.
docker('stop', name);
await page.locator('#lost').waitFor();
assert.equal(await page.title(), 'no answer – kind');
assert.ok(await page.locator('#reset').isDisabled());
await shoot(page, 'gone');

// A start that fails.
const failed = await open(failing);
// What a program has said is text, whatever is in it.
await says(failed.page, 'log', 'this kubelet does not start <b>at all</b>');
await says(failed.page, 'kubernetes', 'failed');
await says(failed.page, 'docker', '✔ ready');
assert.ok(await failed.page.locator('#reset').isEnabled());
await accessible(failed.page);
await shoot(failed.page, 'failed');
assert.deepEqual(failed.wrong, []);

await browser.close();
