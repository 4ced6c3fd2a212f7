// An app of manihot: keeps all its files, of one version, and gives these out, so that no network is needed.
const NAME = `manihot ${self.registration.scope} DIGEST`, FILES = "FILES";

self.addEventListener('install', event => event.waitUntil(
  caches.open(NAME).then(cache => cache.addAll(FILES.map(name => new Request(name, {cache: 'reload'})))),
));

// A newer version waits until no page of the older one is open, so that no page gets files of both.
self.addEventListener('activate', event => event.waitUntil((async () => {
  const older = (await caches.keys()).filter(name => name.startsWith(`manihot ${self.registration.scope} `) && name !== NAME);
  await Promise.all(older.map(name => caches.delete(name)));
  await self.clients.claim();
})()));

self.addEventListener('fetch', event => {
  const {request} = event;
  if (request.method !== 'GET' || !request.url.startsWith(self.registration.scope)) return;
  event.respondWith((async () => {
    const cache = await caches.open(NAME), wanted = request.mode === 'navigate' ? './' : request;
    return await cache.match(wanted, {ignoreSearch: true}) ?? fetch(request);
  })());
});
