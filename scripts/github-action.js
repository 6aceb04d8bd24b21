// GitHub's runner starts this twice: where the action stands in the job, and when the job ends. Only actions in
// JavaScript have a second time; what there is to do is in github-action.sh.
const {spawnSync} = require('node:child_process');

const stage = process.env.STATE_container ? 'stop' : 'start';
process.exit(spawnSync('bash', [`${__dirname}/github-action.sh`, stage], {stdio: 'inherit'}).status ?? 1);
