// A lab's OpenID Connect provider (the npm package oidc-provider), with faults that can be switched on: node provider.mjs PORT KEYS CLIENTS
// KEYS, CLIENTS: JSON. GET /fault/NAME switches one on, /fault/none all off; /clock/SECONDS sets its clock wrong.
import Provider from 'oidc-provider';

const [port, keys, clients] = [Number(process.argv[2]), JSON.parse(process.argv[3]), JSON.parse(process.argv[4])];
const issuer = `http://127.0.0.1:${port}`;
let fault = 'none';
let wrong = 0;
const now = Date.now.bind(Date);
Date.now = () => now() + wrong * 1000;

const people = {
  ada: { email: 'ada@example.org', email_verified: true, preferred_username: 'ada' },
  uma: { email: 'mia@example.org', email_verified: false, preferred_username: 'uma' },
  nora: { preferred_username: 'nora' },
  mallory: { email: 'eve@example.org\r\nBcc: all@example.org', email_verified: true, preferred_username: '<script>alert(1)</script>' },
};
const provider = new Provider(issuer, {
  clients,
  jwks: { keys },
  pkce: { required: () => true },
  claims: { openid: ['sub'], email: ['email', 'email_verified'], profile: ['preferred_username'] },
  enabledJWA: { idTokenSigningAlgValues: ['RS256', 'ES256', 'HS256'] },
  cookies: { keys: ['a key of a trial'] },
  ttl: { Interaction: 86400, Session: 86400, Grant: 86400, IdToken: 3600, AccessToken: 3600 },
  findAccount: (ctx, id) => ({
    accountId: id,
    claims: () => ({ ...people[id], sub: id }),
  }),
});
provider.use(async (ctx, next) => {
  const [, what, value] = ctx.path.split('/');
  if (what === 'fault') { fault = decodeURIComponent(value); ctx.body = fault; return; }
  if (what === 'clock') { wrong = Number(value); ctx.body = `${wrong}`; return; }
  await next();
  if (ctx.path === '/token' && ctx.body?.id_token) {
    if (fault === 'audience') ctx.body = { ...ctx.body, id_token: await issued(ctx, { client: await provider.Client.find('another') }) };
    if (fault === 'nonce') ctx.body = { ...ctx.body, id_token: await issued(ctx, { nonce: 'of another sign-in' }) };
    if (fault === 'no nonce') ctx.body = { ...ctx.body, id_token: await issued(ctx, {}) };
    if (fault === 'access token') ctx.body = { ...ctx.body, access_token: `${ctx.body.access_token.slice(0, -1)}_` };
    if (fault === 'unsigned') ctx.body = { ...ctx.body, id_token: unsigned(ctx.body.id_token) };
    if (fault === 'signature') ctx.body = { ...ctx.body, id_token: ctx.body.id_token.replace(/.{6}$/, 'AAAAAA') };
    if (fault === 'none sent') delete ctx.body.id_token;
  }
  if (ctx.path === '/me' && fault === 'another person') ctx.body = { ...ctx.body, sub: 'bob' };
  if (ctx.path === '/.well-known/openid-configuration' && fault === 'issuer') ctx.body = { ...ctx.body, issuer: 'https://evil.example' };
});

async function issued(ctx, { client = ctx.oidc.client, nonce }) {
  const token = new provider.IdToken({ sub: 'ada' }, { ctx, client });
  token.scope = 'openid';
  if (nonce) token.set('nonce', nonce);
  return token.issue({ use: 'idtoken' });
}

function unsigned(token) {
  return `${Buffer.from('{"alg":"none"}').toString('base64url')}.${token.split('.')[1]}.`;
}

provider.listen(port, '127.0.0.1', () => console.log('ready'));
